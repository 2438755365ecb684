"""Count what a server does, for Prometheus."""

from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ldmrt.serve.batching.dispatcher import Batch
from ldmrt.serve.jobs.job import Job
from ldmrt.serve.jobs.observers import Observer

if TYPE_CHECKING:
    from ldmrt.serve.jobs.serving import Serving

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics(Observer):
    """Holds the figures of a service, and writes them as Prometheus reads them."""

    def __init__(self) -> None:
        """Begin with zeros."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._ended = Counter("ldmrt_requests", "Requests that have ended.", ["model", "stage"], registry=self.registry)
        self._rows = Counter("ldmrt_rows", "Rows of U-Nets that were computed.", ["model"], registry=self.registry)
        self._busy = Counter("ldmrt_unet_seconds", "Time in calls of U-Nets.", ["model"], registry=self.registry)
        self._occupancy = Histogram(
            "ldmrt_batch_rows", "Rows of a call of a U-Net.", ["model"], buckets=ROWS, registry=self.registry
        )  # fmt: skip
        self._latency = Histogram(
            "ldmrt_request_seconds", "Time of a request in a stage.", ["model", "stage"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip

    def watch(self, service: "Serving") -> None:
        """Read how many requests of a service wait and run whenever the figures are asked for."""
        waiting = Gauge("ldmrt_requests_waiting", "Requests that wait.", registry=self.registry)
        waiting.set_function(lambda: service.waiting)
        running = Gauge("ldmrt_requests_running", "Requests that run.", registry=self.registry)
        running.set_function(lambda: service.running)
        loaded = Gauge("ldmrt_model_loaded", "Whether a model is in memory.", ["model"], registry=self.registry)
        for name in service.models:
            if service.is_loaded(name) is not None:
                loaded.labels(name).set_function(partial(_loaded, service, name))

    def batch(self, batch: Batch) -> None:
        """Note a call of a network that has run."""
        model = batch.lane.model.partition("/")[0]
        self._rows.labels(model).inc(batch.rows)
        self._busy.labels(model).inc(batch.seconds)
        self._occupancy.labels(model).observe(batch.rows)

    def job(self, job: Job) -> None:
        """Note a job that has ended."""
        self._ended.labels(job.model, job.stage).inc()
        seconds = dict(job.seconds)
        if job.stage == "done":
            seconds |= job.result(0).seconds
        for stage, taken in seconds.items():
            self._latency.labels(job.model, stage).observe(taken)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)


def _loaded(service: "Serving", name: str) -> float:
    """Return 1 where a model is in memory, and 0 where it is not."""
    return float(service.is_loaded(name) or False)
