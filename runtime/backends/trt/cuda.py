"""The part of CUDA that the runtime uses: a stream, memory on the GPU and pinned memory, events, and graphs."""

import contextlib
import ctypes
from collections.abc import Callable
from typing import SupportsInt

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import unavailable
from ldmrt.runtime.tensors import Array

from .memory_layout import ALIGNMENT, aligned

HINTS = {
    "cudaErrorMemoryAllocation": "fewer images at once, or smaller ones; `ldmrt plan BUNDLE` says what they take",
    "cudaErrorInsufficientDriver": "a newer NVIDIA driver, or --backend onnxruntime",
    "cudaErrorNoDevice": "a machine with an NVIDIA GPU, or --backend onnxruntime",
}
Handle = SupportsInt  # an address, or an object of cuda.bindings around one: a stream, an event, a graph


class Cuda:
    """One stream of the current GPU and scratch memory for its work. Only `wait` may run beside another call."""

    def __init__(self) -> None:
        """Make the stream.

        Raises:
            LdmrtError: cuda-bindings is not installed, or CUDA fails.
        """
        try:
            from cuda.bindings import runtime
        except (ImportError, OSError) as error:
            raise unavailable(error, "cuda") from None
        self._api = runtime
        self._scratch = (0, 0)  # address, bytes
        self._closed = False
        self.stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)

    def _call(self, name: str, *arguments: object) -> Handle:
        """Call a function of CUDA and return its value, 0 where it has none."""
        code, *values = getattr(self._api, name)(*arguments)
        if code != self._api.cudaError_t.cudaSuccess:
            error = getattr(code, "name", str(code))
            raise LdmrtError("cuda", f"{name} failed", found=error, hint=HINTS.get(error))
        return values[0] if values else 0

    def malloc(self, size: int) -> int:
        """Allocate bytes on the GPU and return their address."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Free memory on the GPU."""
        self._call("cudaFree", address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Allocate bytes on the host that the GPU itself can copy from and to: (size,), uint8; see `unpin`."""
        address = int(self._call("cudaHostAlloc", size, self._api.cudaHostAllocDefault))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unpin(self, memory: NDArray[np.uint8]) -> None:
        """Free pinned memory; no array over it may be touched afterwards."""
        self._call("cudaFreeHost", memory.ctypes.data)

    def upload(self, address: int, array: Array) -> None:
        """Put a copy to the GPU on the stream. The array, in pinned memory, must not change until it is done."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: Array, address: int) -> None:
        """Put a copy from the GPU into pinned memory on the stream."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Put a copy of bytes within the GPU on the stream."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, self.stream)

    def synchronize(self) -> None:
        """Wait until the stream has done everything; a failure on the way is raised as an `LdmrtError` here."""
        self._call("cudaStreamSynchronize", self.stream)

    def event(self) -> Handle:
        """Make an event, which can be recorded and waited for; `drop` destroys it."""
        return self._call("cudaEventCreateWithFlags", self._api.cudaEventDisableTiming)

    def mark(self, event: Handle) -> None:
        """Record the event on the stream (cudaEventRecord)."""
        self._call("cudaEventRecord", event, self.stream)

    def wait(self, event: Handle) -> None:
        """Wait for all work that was on the stream before the mark, of any thread; a failure is raised here."""
        self._call("cudaEventSynchronize", event)

    def drop(self, event: Handle) -> None:
        """Destroy an event."""
        self._call("cudaEventDestroy", event)

    def scratch(self, size: int) -> int:
        """Return the address of at least `size` bytes; it holds until a larger size is asked for."""
        address, available = self._scratch
        if size > available:
            if address:
                self.synchronize()
                self._scratch = (0, 0)
                self.free(address)
            size = max(aligned(size), ALIGNMENT)
            self._scratch = (self.malloc(size), size)
        return self._scratch[0]

    def record(self, work: Callable[[], None]) -> Handle | None:
        """Record everything that `work` puts on the stream as a graph, without running it; None where that fails."""
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

    def replay(self, graph: Handle) -> None:
        """Put all of a graph on the stream."""
        self._call("cudaGraphLaunch", graph, self.stream)

    def forget(self, graph: Handle) -> None:
        """Destroy a recorded graph."""
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Free the scratch memory and destroy the stream; a second call does nothing."""
        if self._closed:
            return
        self.synchronize()
        if self._scratch[0]:
            self.free(self._scratch[0])
        self._scratch = (0, 0)
        self._call("cudaStreamDestroy", self.stream)
        self._closed = True
