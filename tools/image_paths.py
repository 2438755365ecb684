"""Where the images of `ldmrt generate` go: into files that are not there yet, or that may be replaced."""

import itertools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from ldmrt.runtime import LdmrtError, LdmrtWarning

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


def output_path(out: Path, count: int, *, steps: bool, overwrite: bool, latents: bool = False) -> Path:
    """Return `out` where none of the files of `count` images are there yet, or may be overwritten; else out_2.png,
    out_3.png and so on, the first that is free, with a warning.
    """
    if out.suffix.lower() not in FORMATS or out.is_dir():
        expected = "a file name that ends in " + ", ".join(FORMATS)
        raise LdmrtError("generate", "invalid --out", expected=expected, found=out)
    if overwrite:
        return out
    others = (out.with_name(f"{out.stem}_{number}{out.suffix}") for number in itertools.count(2))
    free = next(
        path
        for path in itertools.chain([out], others)
        if not any(map(os.path.lexists, _files(path, count, steps, latents)))
    )
    if free != out:
        message = f"generate: {out} is there already, so {free.name} is written; --overwrite replaces it"
        warnings.warn(message, LdmrtWarning, stacklevel=2)
    return free


def _files(out: Path, count: int, steps: bool, latents: bool) -> Iterator[Path]:
    """Every file and folder that a run writes."""
    yield out
    if count > 1:
        yield from (numbered(out, number) for number in range(count))
    if steps:
        yield from steps_of(out)
    if latents:
        yield latents_of(out)
