"""The page about the API has all of the schema, and needs neither scripts nor another host."""

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from ldmrt.serve.page.files import HEADERS, PATHS
from ldmrt.serve.page.reference import page_of, type_of

from ....tools.reports.test_report_browser import colors, luminance
from .conftest import DESKTOP, PHONE, Open


class Tags(HTMLParser):
    """Notes the tags of a page, and whether each that has to be closed is."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_no_page_names_another_host(client: httpx.Client) -> None:
    for path in (*PATHS, "/docs", "/openapi.json"):
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path
    assert [client.get(path).status_code for path in ("/redoc", "/docs/oauth2-redirect")] == [404, 404]


def test_the_page_has_every_operation_and_field(client: httpx.Client) -> None:
    schema, answer = client.get("/openapi.json").json(), client.get("/docs")
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    text = unescape(re.sub("<[^>]*>", " ", answer.text))
    for path, operations in schema["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path}" in text
    fields = {name for form in schema["components"]["schemas"].values() for name in form.get("properties", {})}
    assert len(fields) > 100
    assert fields <= set(text.split())


def test_links_lead_somewhere_and_nothing_is_run(client: httpx.Client) -> None:
    tags = Tags(client.get("/docs").text).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"]) for tag, attributes in tags if tag == "a"]
    assert {link.removeprefix("#") for link in links if link.startswith("#")} <= set(ids)
    assert [client.get(link).status_code for link in links if link.startswith("/")] == [200, 200]
    assert "script" not in {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on") or name == "style"]
    assert ("a", {"href": "/docs"}) in Tags(client.get("/").text).tags


def test_what_a_schema_says_is_no_markup() -> None:
    evil = "<script>alert(1)</script>"
    schema: dict[str, Any] = {
        "info": {"title": evil, "version": evil},
        "paths": {f"/{evil}": {"get": {
            "operationId": evil, "tags": [evil], "description": evil, "responses": {"200": {"description": evil}},
            "parameters": [{"name": evil, "schema": {"type": evil, "default": evil}, "description": evil}],
        }}},
        "components": {"schemas": {evil: {"properties": {evil: {"enum": [evil]}}, "description": evil}}},
    }  # fmt: skip
    assert "script" not in {tag for tag, _ in Tags(page_of(schema)).tags}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 3.0}, "integer from 0 to 3"),
        ({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}, "number above 0"),
        (
            {"type": "array", "items": {"$ref": "#/components/schemas/Control"}},
            'list of <a href="#Control">Control</a>',
        ),
        ({"anyOf": [{"type": "boolean"}, {"const": "all"}]}, "boolean or <code>&quot;all&quot;</code>"),
        ({}, "any"),
    ],
)
def test_types(form: dict[str, Any], words: str) -> None:
    assert type_of(form) == words


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(visit: Open, size: tuple[int, int], scheme: str) -> None:
    """It does not scroll sideways; tables do, by keyboard too, and have names; text is easy to tell from its ground."""
    page = visit(size, scheme)
    page.get_by_role("link", name="API", exact=True).click()
    page.wait_for_url("**/docs")  # and for its style sheet: until then no element has a ground
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.get_by_role("region", name="Fields of Drawing", exact=True).get_attribute("tabindex") == "0"
    assert page.get_by_role("main").count() == page.get_by_role("navigation").count() == 1
    found = colors(page)
    assert len(found) > 5
    for tag, ink, paper in found:
        low, high = sorted((luminance(ink), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, tag
