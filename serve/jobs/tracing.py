"""Trace requests by OpenTelemetry, where it is installed and its own environment variables say where spans go."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .job import Cancelled, Job
from .observers import Observer

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

# Variables of OpenTelemetry, one of which has to say where spans go: nothing is sent by default.
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
HEADERS = ("traceparent", "tracestate")  # of https://www.w3.org/TR/trace-context/
LONGEST = 512  # characters of such a header
log = logging.getLogger("ldmrt.serve")


@contextlib.contextmanager
def tracing(environment: Mapping[str, str] = os.environ) -> Iterator[list[Observer]]:
    """Yield an observer that sends spans, or none where nothing says where to; at the end the last ones are sent.

    Args:
        environment: Variables, of which OpenTelemetry reads more itself: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...
    """
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or environment.get("OTEL_TRACES_EXPORTER") == "none" or not any(map(environment.get, ENDPOINTS)):
        yield []
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no spans are sent: OpenTelemetry is not installed; pip install 'ldmrt[otel]'")
        yield []
        return
    name = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "ldmrt"}
    provider = TracerProvider(resource=Resource.create(name), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield [Tracing(provider.get_tracer("ldmrt.serve"))]
    finally:
        provider.shutdown()


class Tracing(Observer):
    """Makes spans of each request that has ended: one for all of it, and one for each part that it came to.

    They have the model, the size, the steps and the outcome, and never a prompt.
    """

    def __init__(self, tracer: "Tracer") -> None:
        """Take what spans are made with."""
        self._tracer = tracer

    def job(self, job: Job) -> None:
        """Make the spans of a job that has ended."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        began = time.time_ns() - time.monotonic_ns()
        ends = [began + round(1e9 * when) for _, when in parts(job)]
        begin, last = began + round(1e9 * job.accepted), began + round(1e9 * (job.accepted + job.seconds["total"]))
        whole = self._tracer.start_span(
            "draw", extract(job.trace), SpanKind.SERVER, attributes=attributes(job), start_time=begin
        )
        if job.stage == "failed" or (job.stage == "cancelled" and type(job.error) is not Cancelled):
            whole.set_status(Status(StatusCode.ERROR, type(job.error).__name__))
        inside: Context = set_span_in_context(whole)
        for (name, _), end in zip(parts(job), ends, strict=True):
            self._tracer.start_span(name, inside, start_time=begin).end(min(end, last))
            begin = end
        whole.end(last)


def parts(job: Job) -> list[tuple[str, float]]:
    """Return the parts that a job has come to, in their order, and when each ended, as `time.monotonic` counts."""
    end = job.accepted + job.seconds["total"]
    if "waiting" not in job.seconds:
        return [("waiting", end)]
    ended = [("waiting", job.accepted + job.seconds["waiting"])]
    if job.rows_began is not None:
        ended.append(("encode", job.rows_began))
    elif not job.called:
        return [*ended, ("encode", end)]
    decoding = job.result(0).seconds["decode"] if job.stage == "done" else 0.0
    ended.append(("rows", end - decoding))
    return [*ended, ("decode", end)] if job.stage == "done" else ended


def attributes(job: Job) -> dict[str, Any]:
    """Return what a span tells of a job."""
    height, width = job.lane.size
    told: dict[str, Any] = {"request": job.id, "model": job.model, "outcome": job.stage, "height": height}
    told |= {"width": width, "images": job.request.total_images, "steps": job.request.num_inference_steps}
    told |= {"calls": job.called, "rows": job.called * job.rows}
    named = {f"ldmrt.{name}": value for name, value in told.items()}
    return named if job.error is None else named | {"error.type": type(job.error).__name__}


def context_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers by which a caller's trace goes on; none that is too long."""
    return {name: value for name in HEADERS if (value := headers.get(name)) and len(value) <= LONGEST}
