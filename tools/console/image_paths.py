"""Where the images of `ldmrt generate` go: into files that are not there yet, or that may be replaced."""

import contextlib
import itertools
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.lock import file_lock, lock_beside

from .outputs import check_output

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
        raise LdmrtError("generate", "invalid --out", expected=expected, found=out)
    out.parent.mkdir(parents=True, exist_ok=True)
    asked = _Files(out, count, steps, latents)
    if overwrite:
        asked.check()
        yield out
        return
    others = (replace(asked, out=out.with_name(f"{out.stem}_{number}{out.suffix}")) for number in itertools.count(2))
    for files in itertools.chain([asked], others):
        with contextlib.ExitStack() as held:
            if not all(_is_held(name, held) for name in (*files.single, *files.last)):
                continue
            if any(map(os.path.lexists, files.in_the_way)):
                continue
            files.check()
            if files.out != out:
                message = f"generate: {out} is there already, so {files.out.name} is written; --overwrite replaces it"
                warnings.warn(message, LdmrtWarning, stacklevel=3)
            yield files.out
            return


def _is_held(path: Path, held: contextlib.ExitStack) -> bool:
    """Whether a file could be locked, for as long as `held` is open."""
    try:
        held.enter_context(file_lock(lock_beside(path), "generate", f"{path} is being written", "another --out"))
    except LdmrtError:
        return False
    return True


@dataclass(frozen=True)
class _Files:
    """What a run of `count` images writes. There may be a billion, so none is looked for by its name."""

    out: Path
    count: int
    steps: bool
    latents: bool

    @property
    def single(self) -> list[Path]:
        """Every file and folder beside those of single images."""
        return [self.out, *(steps_of(self.out) if self.steps else ()), *([latents_of(self.out)] * self.latents)]

    @property
    def last(self) -> list[Path]:
        """The last of the numbered files, which stands for all and has the longest name; none of one image."""
        return [numbered(self.out, self.count - 1)] if self.count > 1 else []

    @property
    def in_the_way(self) -> list[Path]:
        """What may be there already: single files, and what is there of the numbered ones."""
        pattern = re.compile(rf"{re.escape(self.out.stem)}-([0-9]{{2,10}}){re.escape(self.out.suffix)}", re.DOTALL)
        there = map(pattern.fullmatch, os.listdir(self.out.parent) if self.count > 1 else ())
        numbers = [int(found[1]) for found in there if found]
        return [*self.single, *(numbered(self.out, number) for number in numbers if number < self.count)]

    def check(self) -> None:
        """Refuse what cannot be written, such as a file that would take the place of a folder."""
        for path in (*self.in_the_way, *self.last):
            check_output(path, "--out", folder=self.steps and path == steps_of(self.out)[0])
