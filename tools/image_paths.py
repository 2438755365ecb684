"""Where the images of `ldmrt generate` go: into files that are not there yet, or that may be replaced."""

import contextlib
import itertools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.lock import file_lock, lock_beside

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def numbered(out: Path, number: int) -> Path:
    """Return the file of one of several images: out-03.png beside out.png, which is their grid."""
    return out.with_name(f"{out.stem}-{number:02d}{out.suffix}")


def steps_of(out: Path) -> tuple[Path, Path]:
    """Return the folder of the denoising's rows, and the file of the strip of some."""
    return out.with_name(f"{out.stem}-steps"), out.with_name(f"{out.stem}-steps{out.suffix}")


def latents_of(out: Path) -> Path:
    """Return the file of the latents."""
    return out.with_suffix(".npy")


@contextlib.contextmanager
def free_path(out: Path, count: int, *, steps: bool, overwrite: bool, latents: bool = False) -> Iterator[Path]:
    """Give `out` where none of the files of `count` images are there yet, or may be overwritten; else out_2.png,
    out_3.png and so on, the first that is free, with a warning. Until the block ends no other run is given the same.
    """
    if out.suffix.lower() not in FORMATS or out.is_dir():
        expected = "a file name that ends in " + ", ".join(FORMATS)
        raise LdmrtError("generate", "impossible --out", expected=expected, found=out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if overwrite:
        yield out
        return
    others = (out.with_name(f"{out.stem}_{number}{out.suffix}") for number in itertools.count(2))
    for path in itertools.chain([out], others):
        with contextlib.ExitStack() as held:
            # The last of the numbered files stands for all.
            names = [*_files(path, 0, steps, latents), *([numbered(path, count - 1)] if count > 1 else [])]
            if not all(_is_held(name, held) for name in names):
                continue
            if any(map(os.path.lexists, _files(path, count, steps, latents))):
                continue
            if path != out:
                message = f"generate: {out} is there already, so {path.name} is written; --overwrite replaces it"
                warnings.warn(message, LdmrtWarning, stacklevel=3)
            yield path
            return


def _is_held(path: Path, held: contextlib.ExitStack) -> bool:
    """Whether a file could be locked, for as long as `held` is open."""
    try:
        held.enter_context(file_lock(lock_beside(path), "generate", f"{path} is being written", "another --out"))
    except LdmrtError:
        return False
    return True


def _files(out: Path, count: int, steps: bool, latents: bool) -> Iterator[Path]:
    """Every file and folder that a run writes."""
    yield out
    if count > 1:
        yield from (numbered(out, number) for number in range(count))
    if steps:
        yield from steps_of(out)
    if latents:
        yield latents_of(out)
