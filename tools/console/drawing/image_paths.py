"""File names for the images of `ldmrt generate`: free ones, or existing ones that may be replaced."""

import contextlib
import itertools
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.lock import file_lock, lock_beside
from ldmrt.tools.console.outputs import check_output

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def numbered(out: Path, number: int) -> Path:
    """Return the file of one of several images: out-03.png beside the grid out.png."""
    return out.with_name(f"{out.stem}-{number:02d}{out.suffix}")


def steps_of(out: Path) -> tuple[Path, Path]:
    """Return the folder for the image of each row, and the file for the strip of some rows."""
    return out.with_name(f"{out.stem}-steps"), out.with_name(f"{out.stem}-steps{out.suffix}")


def depth_of(path: Path) -> Path:
    """Return the file of an image's depth: out-depth.png beside out.png."""
    return path.with_name(f"{path.stem}-depth.png")


def latents_of(out: Path) -> Path:
    """Return the file of the latents, out.npy beside out.png."""
    return out.with_suffix(".npy")


def check_name(out: Path, formats: Iterable[str] = FORMATS) -> None:
    """Raise an `LdmrtError` where a file's suffix is none of these formats."""
    if out.suffix.lower() not in formats or out.is_dir():
        expected = "a file name that ends in " + ", ".join(formats)
        raise LdmrtError("generate", "invalid --out", expected=expected, found=out)


@contextlib.contextmanager
def free_path(
    out: Path,
    count: int,
    *,
    steps: bool,
    overwrite: bool,
    latents: bool = False,
    depth: bool = False,
    formats: Iterable[str] = FORMATS,
) -> Iterator[Path]:
    """Yield `out`, or out_2.png, out_3.png and so on where one of the files of `count` images exists already.

    A changed name is a warning. With `overwrite` the name never changes. The name is locked until the block ends, so
    that no other run takes it.

    Raises:
        LdmrtError: The suffix is none of `formats`, or a file cannot be written.
    """
    check_name(out, formats)
    out.parent.mkdir(parents=True, exist_ok=True)
    wanted = _Files(out, count, steps, latents, depth)
    if overwrite:
        wanted.check()
        yield out
        return
    others = (replace(wanted, out=out.with_name(f"{out.stem}_{number}{out.suffix}")) for number in itertools.count(2))
    for files in itertools.chain([wanted], others):
        with contextlib.ExitStack() as held:
            if not all(_is_held(name, held) for name in (*files.single, *files.last)):
                continue
            if any(map(os.path.lexists, files.in_the_way)):
                continue
            files.check()
            if files.out != out:
                message = f"generate: {out} exists already, so {files.out.name} is written; --overwrite replaces it"
                warnings.warn(message, LdmrtWarning, stacklevel=3)
            yield files.out
            return


def _is_held(path: Path, held: contextlib.ExitStack) -> bool:
    """Lock a file until `held` closes; return whether that was possible."""
    try:
        held.enter_context(file_lock(lock_beside(path), "generate", f"{path} is being written", "another --out"))
    except LdmrtError:
        return False
    return True


@dataclass(frozen=True)
class _Files:
    """The files of a run of `count` images; with up to a billion images, no file is looked up by its name."""

    out: Path
    count: int
    steps: bool
    latents: bool
    depth: bool

    @property
    def single(self) -> list[Path]:
        """List all files and folders except those of single images."""
        steps = steps_of(self.out) if self.steps else ()
        depth = [depth_of(self.out)] if self.depth else []
        return [self.out, *depth, *steps, *([latents_of(self.out)] * self.latents)]

    @property
    def last(self) -> list[Path]:
        """List the last numbered file, which has the longest name and stands for all; nothing for one image."""
        return [numbered(self.out, self.count - 1)] if self.count > 1 else []

    @property
    def in_the_way(self) -> list[Path]:
        """List the files that may exist already, and the numbered files that do exist."""
        stem, suffix = re.escape(self.out.stem), re.escape(self.out.suffix)
        depth = r"|-depth\.png" if self.depth else ""
        pattern = re.compile(rf"{stem}-([0-9]{{2,10}})({suffix}{depth})", re.DOTALL)
        matches = map(pattern.fullmatch, os.listdir(self.out.parent) if self.count > 1 else ())
        names = [match[0] for match in matches if match and int(match[1]) < self.count]
        return [*self.single, *map(self.out.with_name, names)]

    def check(self) -> None:
        """Raise an `LdmrtError` for a path that cannot be written, such as a file with the name of a folder."""
        for path in (*self.in_the_way, *self.last):
            check_output(path, "--out", folder=self.steps and path == steps_of(self.out)[0])
