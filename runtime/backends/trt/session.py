"""TensorRT or TensorRT-RTX in this process: the library, what it logs, and what all engines of a bundle share."""

import contextlib
import importlib
from collections.abc import Iterator
from functools import cached_property
from threading import RLock
from typing import Any

from ldmrt.runtime.backends.gpu import compute_capability
from ldmrt.runtime.bundle.engines.recipe import BACKENDS
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import unavailable

from .cuda import Cuda

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
ELSEWHERE = "--backend onnxruntime, which needs no GPU"


class Session:
    """What the engines of one pipeline share: library, GPU, stream and scratch memory. The stream is made for the first
    engine that is loaded and goes with the last one that is closed.

    Engines may run in several threads: who touches TensorRT or the stream holds `turn`, but not while
    it waits for its results.
    """

    def __init__(self, backend: str) -> None:
        self.backend, self.title = backend, BACKENDS[backend]
        try:
            self.trt: Any = importlib.import_module(MODULES[backend])
        except (ImportError, OSError) as error:
            raise unavailable(error, "backend") from None
        try:
            self.gpu = compute_capability()
        except LdmrtError as error:
            raise LdmrtError("backend", f"{self.title} needs a GPU: {error.problem}", hint=ELSEWHERE) from None
        self.version = str(self.trt.__version__)
        self.turn = RLock()
        self._users = 0
        self._cuda: Cuda | None = None

    @cached_property
    def log(self) -> Any:
        """The logger; TensorRT keeps no reference to it."""
        return logger(self.trt)

    @cached_property
    def runtime(self) -> Any:
        """Return TensorRT's runtime, which deserialises engines."""
        return self.trt.Runtime(self.log)

    def join(self) -> Cuda:
        """The stream, for somebody who will `leave`."""
        with self.turn:
            if self._cuda is None:
                self._cuda = Cuda()
            self._users += 1
            return self._cuda

    def leave(self) -> None:
        """Somebody has closed what was on the stream."""
        with self.turn:
            self._users -= 1
            if self._users == 0 and self._cuda is not None:
                cuda, self._cuda = self._cuda, None
                cuda.close()

    @contextlib.contextmanager
    def explained(self, where: str, problem: str, hint: str = ELSEWHERE) -> Iterator[None]:
        """An `LdmrtError` with what TensorRT said, where the block raises `Refused`, or TensorRT its own error."""
        self.log.errors.clear()
        try:
            yield
        except (Refused, RuntimeError) as error:
            found = self.log.errors[0] if self.log.errors else str(error)
            raise LdmrtError(where, problem, found=found[:300], hint=hint) from None


class Refused(Exception):
    """TensorRT said no, as it does: by returning False or nothing."""


def must(answer: Any, call: str) -> Any:
    """The answer; `Refused` where it is False or None."""
    if answer is None or answer is False:
        raise Refused(f"{call} failed")
    return answer


def logger(trt: Any) -> Any:
    """Make a logger that keeps the errors, for the one that is raised."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Log()
