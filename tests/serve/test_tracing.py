"""Requests become spans, without their prompts, as parts of the caller's trace."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.batching.lanes import Lane
from ldmrt.serve.jobs.job import Cancelled, DeadlinePassed, Job
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.jobs.tracing import Tracing, context_of, tracing
from ldmrt.serve.models.models import fixed

sdk = pytest.importorskip("opentelemetry.sdk.trace")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
PARENT = {"traceparent": f"00-{TRACE:032x}-{SPAN:016x}-01"}
ASKED = Request("a secret pear", num_inference_steps=3, num_images_per_prompt=2, guidance_scale=3.0, scheduler="ddim")


class Spans:
    """Keeps the spans that a tracer makes."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor

        self._kept, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracing = Tracing(provider.get_tracer("test"))

    def all(self) -> dict[str, Any]:
        """Return the spans by their names, each of which is there once."""
        spans = self._kept.get_finished_spans()
        by_name = {span.name: span for span in spans}
        assert len(by_name) == len(spans)
        return by_name


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with open_pipeline(bundle) as opened:
        yield opened


def nested(spans: dict[str, Any], parts: list[str]) -> None:
    """The parts fill the whole, one after another, and are its children."""
    whole, inside = spans["draw"], [spans[name] for name in parts]
    assert spans.keys() == {"draw", *parts}
    assert [span.parent.span_id for span in inside] == [whole.context.span_id] * len(parts)
    times = [(span.start_time, span.end_time) for span in inside]
    assert [begin for begin, _ in times] == [whole.start_time, *[end for _, end in times[:-1]]]
    assert times[-1][1] == whole.end_time
    assert all(begin <= end for begin, end in times)


def test_a_request_that_is_done(pipeline: Pipeline, spans: Spans) -> None:
    service = Service(fixed({"tiny": pipeline}, {"tiny": 8}), observer=spans.tracing)
    job = service.submit(ASKED, trace=PARENT)
    result = job.result(60)
    service.close()
    found = spans.all()
    nested(found, ["waiting", "encode", "rows", "decode"])
    whole, side = found["draw"], pipeline.stage.size
    assert (whole.context.trace_id, whole.parent.span_id) == (TRACE, SPAN)
    assert whole.status.is_ok or whole.status.is_unset
    assert dict(whole.attributes) == {
        "ldmrt.request": job.id, "ldmrt.model": "tiny", "ldmrt.outcome": "done", "ldmrt.height": side,
        "ldmrt.width": side, "ldmrt.images": 2, "ldmrt.steps": 3, "ldmrt.calls": 3, "ldmrt.rows": 12,
    }  # fmt: skip
    assert not any("secret" in span.to_json() for span in found.values())
    decoded = found["decode"].end_time - found["decode"].start_time
    assert decoded == pytest.approx(1e9 * result.seconds["decode"], abs=1e3)  # of rounding to nanoseconds, in floats


def test_networks_that_take_turns(pipeline: Pipeline, spans: Spans) -> None:
    """Nothing tells when their rows begin, so these have the encoders too."""
    service = Service(fixed({"tiny": pipeline}, {"tiny": 8}))
    job = service.submit(ASKED)
    job.result(60)
    service.close()
    job.rows_began = None
    spans.tracing.job(job)
    nested(spans.all(), ["waiting", "rows", "decode"])


@pytest.mark.parametrize(
    ("error", "outcome", "is_error"),
    [
        (Cancelled("request", "cancelled by its caller"), "cancelled", False),
        (DeadlinePassed("request", "its deadline has passed"), "cancelled", True),
        (ValueError("a bug"), "failed", True),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_is_not(spans: Spans, error: Exception, outcome: str, is_error: bool, begun: bool) -> None:
    """Its spans end where it did; a trace of its own begins where the caller has none."""
    job = Job(Lane("tiny", (16, 16), 8), ASKED, calls=3, rows=4, model="tiny")
    if begun:
        job.begin()
    job.end(error)
    spans.tracing.job(job)
    found = spans.all()
    nested(found, ["waiting", "encode"] if begun else ["waiting"])
    whole = found["draw"]
    assert whole.parent is None
    assert (whole.attributes["ldmrt.outcome"], whole.attributes["error.type"]) == (outcome, type(error).__name__)
    assert (whole.status.status_code.name == "ERROR") == is_error
    assert "a bug" not in whole.to_json()


def test_headers_of_a_trace() -> None:
    assert context_of({**PARENT, "tracestate": "a=b", "cookie": "c"}) == {**PARENT, "tracestate": "a=b"}
    assert context_of({"traceparent": "0" * 513}) == {}


@pytest.mark.parametrize("bad", ["", "nonsense", "00-0-0-00", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\udcff"])
def test_a_strange_header_begins_a_trace_of_its_own(spans: Spans, bad: str) -> None:
    job = Job(Lane("tiny", (16, 16), 8), ASKED, calls=3, rows=4, model="tiny", trace={"traceparent": bad})
    job.end(ValueError())
    spans.tracing.job(job)
    assert spans.all()["draw"].parent is None


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_sent_that_nobody_configured(environment: dict[str, str]) -> None:
    with tracing(environment) as observers:
        assert observers == []


def test_spans_are_sent_to_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    received = list[tuple[str, bytes]]()

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever).start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        with tracing() as observers:
            job = Job(Lane("tiny", (16, 16), 8), ASKED, calls=3, rows=4, model="tiny")
            job.end(ValueError())
            for observer in observers:
                observer.job(job)
        collector.shutdown()
    assert [path for path, _ in received] == ["/v1/traces"]
    assert job.id.encode() in received[0][1]
    assert b"secret" not in received[0][1]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}) as observers:
        assert observers == []
    assert "pip install 'ldmrt[otel]'" in caplog.text
