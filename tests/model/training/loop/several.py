"""Run a function in several processes that are connected by gloo, as accelerate's launcher connects them."""

import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from ldmrt.model.training.loop.processes import Processes, join

T = TypeVar("T")
SECONDS = 60  # after which a process that waits for ever is ended: it leaves no result


def in_processes(count: int, function: Callable[[Processes], T], folder: Path) -> list[T | Exception]:
    """Return what a function returns, or raises, in each of several processes.

    They are forked, so nothing is imported again; networks have one thread here, which a fork needs.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert torch.get_num_threads() == 1
    children = []
    for rank in range(count):
        if child := os.fork():
            children.append(child)
            continue
        signal.alarm(SECONDS)
        try:
            _child(rank, count, port, function, folder)
        finally:
            os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(count)]


def _child(rank: int, count: int, port: int, function: Callable[[Processes], T], folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    found: object
    try:
        processes = join("cpu")
        with processes.sharing_errors():
            found = function(processes)
    except Exception as error:
        traceback.print_exc()
        found = error
    (folder / str(rank)).write_bytes(pickle.dumps(found))
