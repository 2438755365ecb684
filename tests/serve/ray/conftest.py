"""A Ray cluster of two nodes on this machine, and the tiny bundle on replicas of it."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MEMORY = 80 << 20  # bytes of each node's object store, little more than Ray's least


def ray_processes() -> set[int]:
    """The processes of Ray that this process has started, and those that they have started."""
    found, family = set[int](), {os.getpid()}
    parents = dict[int, tuple[int, str]]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1]), (entry / "cmdline").read_text()
    while True:
        new = {pid for pid, (parent, _) in parents.items() if parent in family} - family
        if not new:
            break
        family |= new
    found = {pid for pid in family if pid in parents and "ray" in parents[pid][1]}
    return found - {os.getpid()}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, each with room for one replica. No process of Ray outlives the tests."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    node = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=node)
    try:
        nodes.add_node(**node)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
        nodes.wait_for_nodes()
        yield nodes
    finally:
        with contextlib.suppress(Exception):
            from ray import serve

            serve.shutdown()
        started = ray_processes()
        ray.shutdown()
        nodes.shutdown()
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for number, handler in handlers.items():
            signal.signal(number, handler)
