"""Print by how many bytes a process grows that answers thousands of requests: `python growth.py BUNDLE`."""

import sys
from concurrent.futures import ThreadPoolExecutor

import psutil

from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.serve.http.metrics import Metrics
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.jobs.store import Jobs
from ldmrt.serve.models.models import fixed

WARM, ALL, KEPT, EACH = 1000, 10_000, 64, 500


def growth(bundle: str) -> int:
    """Draw requests with a bundle, and return by how many bytes the process grew after the first ones.

    The prompts are eight, as the text encoder keeps outputs of up to 64 MB. Networks have one thread, as each of a pool
    takes memory of its own at some time. Few requests are made at a time: what waits in the pool is the test's own.
    """
    process, jobs, metrics = psutil.Process(), Jobs(KEPT, 600.0, 1 << 20), Metrics()
    with open_pipeline(bundle, threads=1) as pipeline, ThreadPoolExecutor(16) as pool:
        service = Service(fixed({"tiny": pipeline}, {"tiny": 8}), observer=metrics)
        metrics.watch(service)

        def ask(number: int) -> None:
            job = service.submit(Request(f"a pear {number % 8}", seed=number, num_inference_steps=1))
            jobs.add(job)
            job.result(60)

        before = 0
        for first in range(0, ALL, EACH):
            if first == WARM:
                before = process.memory_info().rss
            list(pool.map(ask, range(first, first + EACH)))
        after = process.memory_info().rss
        assert (len(jobs), service.running, service.waiting) == (KEPT, 0, 0)
        service.close()
    return after - before


if __name__ == "__main__":
    print(growth(sys.argv[1]))
