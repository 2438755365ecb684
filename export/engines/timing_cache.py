"""Keeps how fast TensorRT found its kernels, so that the next build need not measure them again."""

import contextlib
from pathlib import Path
from typing import Any

from ldmrt.runtime.bundle.engines.targets import TITLES
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import plain_file
from ldmrt.runtime.files.writing import write_atomically

OPTION = "--timing-cache"


class TimingCache:
    """Holds a file of TensorRT's timings: read before an engine is built, written after it."""

    def __init__(self, path: Path) -> None:
        """Take the file, which need not be there."""
        self.path = path
        self._config: Any = None

    def give(self, config: Any) -> None:
        """Give the timings to a build (tensorrt.IBuilderConfig).

        Raises:
            LdmrtError: The file cannot be read, or holds no timings of this version of TensorRT on this GPU.
        """
        there = self.path.exists()
        cache = config.create_timing_cache(plain_file(OPTION, self.path).read_bytes() if there else b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            problem, hint = (
                f"TensorRT takes no timings from {self.path}",
                "another file, which is made where it is missing",
            )
            raise LdmrtError(OPTION, problem, expected="a file of this version and GPU", hint=hint)
        self._config = config

    def keep(self) -> None:
        """Write the timings of a build that has ended, with those that were given to it.

        Where that fails, the next build measures again: no engine is lost for it.
        """
        timings, self._config = bytes(self._config.get_timing_cache().serialize()), None
        with contextlib.suppress(OSError, LdmrtError), write_atomically(self.path) as file:
            file.write(timings)


def check_timing_cache(backend: str) -> None:
    """Refuse a file of timings where the library takes none.

    Raises:
        LdmrtError: The library is TensorRT-RTX.
    """
    if backend == "tensorrt-rtx":
        problem = f"{TITLES[backend]} measures no kernels while it builds"
        hint = "without it: kernels that are compiled at the first run are kept beside the engine"
        raise LdmrtError(OPTION, problem, expected="--backend tensorrt", hint=hint)
