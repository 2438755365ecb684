"""schemathesis asks a running server what its own schema allows, and what it does not."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance

from ldmrt.serve.http.state import Limits

from .conftest import Running

OPERATIONS = 10


@pytest.fixture(scope="module")
def short(pipeline: object) -> Iterator[Running]:
    """A server whose requests end soon whatever they ask for."""
    server = Running(pipeline, Limits(seconds=0.5, steps=20, images=2, pixels=128 * 128), waiting=64)  # type: ignore[arg-type]
    yield server
    server.stop()


@pytest.mark.slow
def test_what_the_schema_allows_and_what_not(short: Running, caplog: pytest.LogCaptureFixture) -> None:
    """No answer says 500, each has a status of the schema, and nothing is logged as an error."""
    schema = schemathesis.openapi.from_url(f"{short.url}/openapi.json")
    settings = hypothesis.settings(
        max_examples=30, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )  # fmt: skip
    tried = set[str]()
    for result in schema.get_all_operations():
        operation = result.ok()
        tried.add(operation.label)
        for mode in schemathesis.GenerationMode:

            @settings
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                answer = case.call(timeout=30)
                checks = [not_a_server_error, status_code_conformance]
                if answer.status_code == 504:  # the deadline of half a second is an answer, and in the schema
                    checks = checks[1:]
                case.validate_response(answer, checks=checks)

            positive = mode is schemathesis.GenerationMode.POSITIVE
            # where an operation takes nothing, or any text, there is nothing that its schema forbids
            with contextlib.nullcontext() if positive else contextlib.suppress(hypothesis.errors.Unsatisfiable):
                ask()
    assert len(tried) >= OPERATIONS, tried
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
