"""A GPU of the host's memory: its stream does nothing until somebody waits for it, as late as a real one may be.

It refuses what a real one answers with a crash or, worse, with wrong numbers: memory that is not there, or no longer.
"""

import ctypes
import enum
from collections import Counter
from collections.abc import Callable
from functools import partial
from threading import RLock
from typing import Any

import numpy as np

Work = Callable[[], None]


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = (cudaError_t.cudaSuccess,)


class FakeCuda:
    """What stands for `cuda.bindings.runtime`. Answers are tuples, the error first."""

    cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode = cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode
    cudaStreamNonBlocking, cudaHostAllocDefault, cudaEventDisableTiming = 1, 0, 2

    def __init__(self, room: int = 1 << 24) -> None:
        self.room = room  # bytes of device memory
        self.device: dict[int, Any] = {}  # by address
        self.host: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Work]] = {}
        self.events: dict[int, bool] = {}  # whether each has happened
        self.queue: list[Work] = []
        self._runs = RLock()  # the work, by whoever waits
        self.capturing: list[Work] | None = None
        self.broken = False  # the capture that is on its way
        self.did: Counter[str] = Counter()
        self.fails: dict[str, cudaError_t] = {}
        self._freed: list[Any] = []  # kept, so that no address comes back and is taken for the old one
        self._next = 1

    @property
    def leftovers(self) -> list[object]:
        """What nobody has given back."""
        return [*self.device, *self.host, *self.streams, *self.graphs, *self.events]

    def put(self, work: Work) -> None:
        """On the stream, or into the graph that is being recorded."""
        (self.queue if self.capturing is None else self.capturing).append(work)

    def holds(self, address: int, size: int) -> bool:
        return any(start <= address and address + size <= start + len(held) for start, held in self.device.items())

    def _answer(self, name: str, *values: Any) -> tuple[Any, ...]:
        self.did[name] += 1
        return (self.fails[name], None) if name in self.fails else (*OK, *values)

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.cudaStreamNonBlocking
        answer = self._answer("cudaStreamCreateWithFlags", self._handle())
        self.streams |= {answer[1]} - {None}
        return answer

    def cudaStreamDestroy(self, stream: int) -> Any:
        self.streams.remove(stream)
        assert not self.queue
        return OK

    def cudaStreamSynchronize(self, stream: int) -> Any:
        assert stream in self.streams
        assert self.capturing is None
        answer = self._answer("cudaStreamSynchronize")
        with self._runs:
            while self.queue:
                self.queue.pop(0)()
        return answer

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.cudaEventDisableTiming
        event = self._handle()
        self.events[event] = True
        return self._answer("cudaEventCreateWithFlags", event)

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        assert stream in self.streams
        assert self.capturing is None
        self.events[event] = False
        self.put(partial(self.events.__setitem__, event, True))
        return self._answer("cudaEventRecord")

    def cudaEventSynchronize(self, event: int) -> Any:
        answer = self._answer("cudaEventSynchronize")
        with self._runs:
            while not self.events[event]:
                self.queue.pop(0)()
        return answer

    def cudaEventDestroy(self, event: int) -> Any:
        del self.events[event]
        return OK

    def cudaMalloc(self, size: int) -> Any:
        assert size > 0
        if sum(map(len, self.device.values())) + size > self.room:
            return cudaError_t.cudaErrorMemoryAllocation, None
        whole = np.full(size + 256, 0xAB, np.uint8)  # what was there before
        held = whole[-whole.ctypes.data % 256 :][:size]
        self.device[held.ctypes.data] = held
        return self._answer("cudaMalloc", held.ctypes.data)

    def cudaFree(self, address: int) -> Any:
        assert not self.queue, "freed under work that is under way"
        self._freed.append(self.device.pop(address))
        return self._answer("cudaFree")

    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        held = np.full(size, 0xAB, np.uint8)
        answer = self._answer("cudaHostAlloc", held.ctypes.data)
        if answer[0] == cudaError_t.cudaSuccess:
            self.host[held.ctypes.data] = held
        return answer

    def cudaFreeHost(self, address: int) -> Any:
        assert not self.queue
        del self.host[address]
        return OK

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: cudaMemcpyKind, stream: int) -> Any:
        assert stream in self.streams
        to_device = kind != cudaMemcpyKind.cudaMemcpyDeviceToHost
        from_device = kind != cudaMemcpyKind.cudaMemcpyHostToDevice

        def work() -> None:
            assert not to_device or self.holds(target, size)
            assert not from_device or self.holds(source, size)
            ctypes.memmove(target, source, size)

        self.put(work)
        return self._answer(f"copy {kind.name.removeprefix('cudaMemcpy')}")

    def cudaStreamBeginCapture(self, stream: int, mode: cudaStreamCaptureMode) -> Any:
        assert self.capturing is None
        self.capturing, self.broken = [], False
        return self._answer("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream: int) -> Any:
        assert self.capturing is not None
        recorded, self.capturing = self.capturing, None
        if self.broken:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return self._answer("cudaStreamEndCapture", self._graph(recorded))

    def _graph(self, recorded: list[Work]) -> int:
        handle = self._handle()
        self.graphs[handle] = recorded
        return handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        return self._answer("cudaGraphInstantiate", self._graph(self.graphs[graph]))

    def cudaGraphDestroy(self, graph: int) -> Any:
        del self.graphs[graph]
        return OK

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: int, stream: int) -> Any:
        assert stream in self.streams
        self.queue += self.graphs[graph]
        return self._answer("cudaGraphLaunch")

    def cudaGetLastError(self) -> Any:
        return OK
