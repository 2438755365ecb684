"""What the runtime asks of CUDA: a stream, memory on the GPU and pinned beside it, and graphs of what was launched."""

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import unavailable

from .memory_layout import ALIGNMENT, aligned

HINTS = {
    "cudaErrorMemoryAllocation": "fewer images at once, or smaller ones; `ldmrt plan BUNDLE` says what they take",
    "cudaErrorInsufficientDriver": "a newer NVIDIA driver, or --backend onnxruntime",
    "cudaErrorNoDevice": "a machine with an NVIDIA GPU, or --backend onnxruntime",
}


class Cuda:
    """One stream of the current GPU, and scratch memory that all share who work on it one after another. Of one thread
    at a time, but for `wait`.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except (ImportError, OSError) as error:
            raise unavailable(error, "cuda") from None
        self._api: Any = runtime
        self._scratch: tuple[int, int] = (0, 0)  # address, bytes
        self.stream: Any = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *values = getattr(self._api, name)(*arguments)
        if code != self._api.cudaError_t.cudaSuccess:
            found = getattr(code, "name", str(code))
            raise LdmrtError("cuda", f"{name} failed", found=found, hint=HINTS.get(found))
        return values[0] if values else None

    def malloc(self, size: int) -> int:
        """The address of new memory on the GPU."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give it back."""
        self._call("cudaFree", address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """New memory of the host that the GPU copies from and to by itself; `unpin` gives it back."""
        address = int(self._call("cudaHostAlloc", size, self._api.cudaHostAllocDefault))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unpin(self, memory: NDArray[np.uint8]) -> None:
        """Give it back; arrays over it must not be touched any more."""
        self._call("cudaFreeHost", memory.ctypes.data)

    def upload(self, address: int, array: NDArray) -> None:
        """Copy to the GPU, when the stream comes to it: pinned memory must stay as it is until then."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: NDArray, address: int) -> None:
        """Copy from the GPU, when the stream comes to it."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy on the GPU, when the stream comes to it."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, self.stream)

    def synchronize(self) -> None:
        """Wait until the stream has done everything. What failed on the way is an `LdmrtError` here."""
        self._call("cudaStreamSynchronize", self.stream)

    def event(self) -> Any:
        """Make an event, which can be recorded and waited for; `drop` gives it back."""
        return self._call("cudaEventCreateWithFlags", self._api.cudaEventDisableTiming)

    def mark(self, event: Any) -> None:
        """Record the event on the stream (cudaEventRecord)."""
        self._call("cudaEventRecord", event, self.stream)

    def wait(self, event: Any) -> None:
        """Wait for all that was on the stream before the mark, of any thread. What failed is an `LdmrtError` here."""
        self._call("cudaEventSynchronize", event)

    def drop(self, event: Any) -> None:
        """Destroy an event."""
        self._call("cudaEventDestroy", event)

    def scratch(self, size: int) -> int:
        """The address of `size` bytes at least, until somebody asks for more."""
        address, there = self._scratch
        if size > there:
            if address:
                self.synchronize()
                self._scratch = (0, 0)
                self.free(address)
            size = max(aligned(size), ALIGNMENT)
            self._scratch = (self.malloc(size), size)
        return self._scratch[0]

    def record(self, work: Callable[[], None]) -> Any | None:
        """A graph of what `work` puts on the stream, none of which runs now; None where it cannot be recorded."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        done = False
        try:
            with contextlib.suppress(LdmrtError):
                work()
                done = True
        finally:
            code, recorded = self._api.cudaStreamEndCapture(self.stream)
        if code != self._api.cudaError_t.cudaSuccess:
            self._api.cudaGetLastError()  # the next call would report it again
            return None
        try:
            return self._call("cudaGraphInstantiate", recorded, 0) if done else None
        finally:
            self._call("cudaGraphDestroy", recorded)

    def replay(self, graph: Any) -> None:
        """Put all of a graph on the stream."""
        self._call("cudaGraphLaunch", graph, self.stream)

    def forget(self, graph: Any) -> None:
        """Destroy a captured graph."""
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Give back the scratch memory and the stream."""
        if self.stream is None:
            return
        self.synchronize()
        if self._scratch[0]:
            self.free(self._scratch[0])
        self._scratch = (0, 0)
        self._call("cudaStreamDestroy", self.stream)
        self.stream = None
