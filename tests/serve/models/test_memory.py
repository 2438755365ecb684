"""The memory of a service does not grow with the requests that it has answered."""

from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.http.metrics import Metrics
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.jobs.store import Jobs
from ldmrt.serve.models.models import fixed

WARM, MEASURED = 1000, 3000
# A job that is kept by mistake is about 5 KB of image, latents and objects, so 3000 of them are 15 MB. Runs grew by 0.3
# to 4 MB: fragments of the allocator, and buffers of threads that begin later than others. The prompts are eight, as
# the text encoder keeps outputs of up to 64 MB.
GROWTH = 8 << 20


@pytest.mark.slow
def test_thousands_of_requests(pipeline: Pipeline) -> None:
    process, jobs, metrics = psutil.Process(), Jobs(64, 600.0, 1 << 20), Metrics()
    service = Service(fixed({"tiny": pipeline}, {"tiny": 8}), observer=metrics)
    metrics.watch(service)

    def ask(number: int) -> None:
        job = service.submit(Request(f"a pear {number % 8}", seed=number, num_inference_steps=1))
        jobs.add(job)
        job.result(60)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(WARM)))
        before = process.memory_info().rss
        list(pool.map(ask, range(WARM, WARM + MEASURED)))
    assert process.memory_info().rss - before < GROWTH
    assert (len(jobs), service.running, service.waiting) == (64, 0, 0)
    service.close()
