"""Describe the server's own API on a page without scripts, made of its OpenAPI schema."""

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import HTMLResponse

from .files import HEADERS

PATH = "/docs"
METHODS = ("get", "post", "put", "delete")
BOUNDS = {
    "minimum": "from {:g}",
    "maximum": "to {:g}",
    "exclusiveMinimum": "above {:g}",
    "exclusiveMaximum": "below {:g}",
}
Schema = Mapping[str, Any]
router = APIRouter(include_in_schema=False)


@router.api_route(PATH, methods=["GET", "HEAD"])
async def reference(http: HTTPRequest) -> HTMLResponse:
    """Return the page; it says nothing of this server that its source does not."""
    return HTMLResponse(page_of(http.app.openapi()), headers=HEADERS)


def page_of(schema: Schema) -> str:
    """Return the page that describes an OpenAPI schema."""
    groups: dict[str, list[str]] = {}
    for path, operations in schema["paths"].items():
        for method in METHODS:
            if method in operations:
                tag = (operations[method].get("tags") or ["other"])[0]
                groups.setdefault(tag, []).append("\n".join(_operation(method, path, operations[method])))
    forms = schema.get("components", {}).get("schemas", {})
    groups["bodies"] = [
        f'<h3 id="{escape(name)}">{escape(name)}</h3>{_text(form.get("description"))}{_fields(name, form)}'
        for name, form in forms.items()
        if form.get("properties")
    ]
    links = " ".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in groups)
    sections = "\n".join(
        f'<section aria-labelledby="{escape(tag)}"><h2 id="{escape(tag)}">{escape(tag)}</h2>{"".join(parts)}</section>'
        for tag, parts in groups.items()
    )
    title = f"{escape(schema['info']['title'])} {escape(schema['info']['version'])}: API"
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="/page/icon.svg">
<link rel="stylesheet" href="/page/style.css">
<header><h1>{title}</h1><nav aria-label="Contents">{links} <a href="/openapi.json">openapi.json</a> <a href="/">Draw</a></nav></header>
<main class="text">
{sections}
</main>
</html>
"""  # noqa: E501


def _operation(method: str, path: str, operation: Schema) -> Iterator[str]:
    """Yield what the page says of an operation."""
    name = f"{method.upper()} {path}"
    yield f'<h3 id="{escape(operation["operationId"])}"><code>{escape(name)}</code></h3>'
    yield _text(operation.get("description"))
    parameters = {each["name"]: each["schema"] | each for each in operation.get("parameters", ())}
    required = [each["name"] for each in operation.get("parameters", ()) if each.get("required")]
    yield _fields(name, {"properties": parameters, "required": required})
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        form = content["schema"]
        yield f"<p>Body, <code>{escape(kind)}</code>: {type_of(form)}</p>"
        yield _fields(f"{name}, body", form)
    answers = [
        f"<dt>{escape(status)}</dt><dd>{_inline(answer['description'])}</dd>"
        for status, answer in operation.get("responses", {}).items()
    ]
    yield f"<dl>{''.join(answers)}</dl>"


def _fields(name: str, form: Schema) -> str:
    """Return a table of the fields of a form; nothing where it has none."""
    required, rows = form.get("required", ()), list[str]()
    for field, each in form.get("properties", {}).items():
        default = f"<code>{escape(json.dumps(each['default']))}</code>" if each.get("default") is not None else ""
        needed = "required" if field in required else default
        about = _inline(each.get("description", ""))
        rows.append(f'<tr><th scope="row"><code>{escape(field)}</code><td>{type_of(each)}<td>{needed}<td>{about}</tr>')
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{title}' for title in ("Field", "Type", "Default", "About"))
    label = escape(f"Fields of {name}")
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{label}"><table><thead><tr>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def type_of(each: Schema) -> str:
    """Return the type of a value of a schema, in words, as HTML."""
    if reference := each.get("$ref"):
        name = escape(reference.rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if several := each.get("anyOf") or each.get("oneOf"):
        return " or ".join(dict.fromkeys(type_of(one) for one in several if one.get("type") != "null"))
    if "const" in each or "enum" in each:
        values = each.get("enum") or [each["const"]]
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    kind = each.get("type", "any")
    if kind == "array":
        return f"list of {type_of(each.get('items', {}))}"
    bounds = [text.format(each[word]) for word, text in BOUNDS.items() if word in each]
    return " ".join([escape(str(kind)), *bounds])


def _text(text: str | None) -> str:
    """Return paragraphs of HTML."""
    parts = (text or "").strip().split("\n\n")
    return "".join(f"<p>{_inline(part)}</p>" for part in parts if part)


def _inline(text: str) -> str:
    """Return a text as HTML, what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
