"""TensorRT or TensorRT-RTX in this process: the library, its log, and everything that the engines of a bundle share."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from functools import cached_property
from threading import RLock
from types import ModuleType
from typing import TypeVar

from ldmrt.runtime.backends.gpu import compute_capability
from ldmrt.runtime.bundle.engines.targets import TITLES
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import unavailable

from .api import Runtime
from .cuda import Cuda

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
ELSEWHERE = "--backend onnxruntime, which needs no GPU"
Answer = TypeVar("Answer")


class Session:
    """Everything that the engines of one pipeline share: library, GPU, stream and scratch memory.

    The stream is made for the first engine that is loaded and destroyed with the last one that is closed. Engines may
    run in several threads: a thread holds `turn` while it calls TensorRT or uses the stream, but not while it waits.
    """

    def __init__(self, backend: str) -> None:
        """Import the library and find the GPU.

        Args:
            backend: A backend of `TITLES`.

        Raises:
            LdmrtError: The library is not installed, or there is no GPU.
        """
        self.backend, self.title = backend, TITLES[backend]
        try:
            self.trt = importlib.import_module(MODULES[backend])
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
        self._dropped = list[Callable[[], None]]()

    @cached_property
    def log(self) -> "ErrorLog":
        """Make the logger, and keep it: TensorRT holds no reference to it."""
        return logger(self.trt)

    @cached_property
    def runtime(self) -> Runtime:
        """Make TensorRT's runtime, which deserialises engines."""
        runtime: Runtime = self.trt.Runtime(self.log)
        return runtime

    def join(self) -> Cuda:
        """Return the stream, for an engine or a binding that calls `leave` when it is closed."""
        with self.turn:
            if self._cuda is None:
                self._cuda = Cuda()
            self._users += 1
            return self._cuda

    def leave(self) -> None:
        """Note that a user of the stream was closed; the last one closes the stream."""
        with self.turn:
            self._users -= 1
            if self._users == 0 and self._cuda is not None:
                cuda, self._cuda = self._cuda, None
                cuda.close()

    def close_later(self, close: Callable[[], None]) -> None:
        """Keep what closes an engine that nobody holds any more, for the next that is bound or closed.

        Engines are dropped in any thread and at any time, such as while another is being recorded.
        """
        self._dropped.append(close)

    def close_dropped(self) -> None:
        """Close the engines that nobody holds any more."""
        with self.turn:
            while self._dropped:
                self._dropped.pop()()

    @contextlib.contextmanager
    def explained(self, where: str, problem: str, hint: str = ELSEWHERE) -> Iterator[None]:
        """Turn `Refused` and TensorRT's own errors within the block into an `LdmrtError` with TensorRT's message."""
        self.log.errors.clear()
        try:
            yield
        except (Refused, RuntimeError) as error:
            message = self.log.errors[0] if self.log.errors else str(error)
            raise LdmrtError(where, problem, found=message[:300], hint=hint) from None


class Refused(Exception):
    """A call of TensorRT failed, which it reports by returning False or nothing."""


def must(answer: Answer | None, call: str) -> Answer:
    """Return the answer of a call; raise `Refused` where it is False or None."""
    if answer is None or answer is False:
        raise Refused(f"{call} failed")
    return answer


class ErrorLog:
    """Keeps the errors that TensorRT logs, for the exception that is raised."""

    def __init__(self, serious: tuple[object, ...]) -> None:
        """Keep messages of these severities."""
        super().__init__()
        self.serious, self.errors = serious, list[str]()

    def log(self, severity: object, message: str) -> None:
        """Take a message; TensorRT calls it."""
        if severity in self.serious:
            self.errors.append(message.strip())


def logger(trt: ModuleType) -> ErrorLog:
    """Make a logger for a library: an `ErrorLog` that is also the library's ILogger."""
    log: ErrorLog = type("Log", (ErrorLog, trt.ILogger), {})((trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR))
    return log
