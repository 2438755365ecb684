"""Options of `ldmrt generate` that name images: one for all prompts, or one for each."""

import os
from typing import TypeVar

import click

from ldmrt.runtime.errors import InvalidRequest

T = TypeVar("T")
IMAGES = ("image", "mask", "ip_adapter_image")  # of a request, by their short words


class ImagePath(click.Path):
    """An option that takes the path of an existing file."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Return the path; fail where it contains a NUL, which click's own check does not expect."""
        if "\0" in str(value):
            self.fail(f"{value!r} contains a NUL", param, ctx)
        return super().convert(value, param, ctx)


def one_or_all(items: tuple[T, ...] | list[T]) -> T | list[T] | None:
    """Return None for no item, the item itself for one, and a list for several."""
    return None if not items else items[0] if len(items) == 1 else list(items)


def collected(controls: tuple[tuple[str, tuple[str, float]], ...]) -> dict[str, tuple[str | list[str] | None, float]]:
    """Group images and scales by control: a name that is repeated has one image for each prompt.

    Raises:
        InvalidRequest: A repeated name has two scales.
    """
    images: dict[str, list[str]] = {}
    scales: dict[str, float] = {}
    for name, (image, scale) in controls:
        images.setdefault(name, []).append(image)
        if scales.setdefault(name, scale) != scale:
            raise InvalidRequest(f"control {name}", "two scales", expected=scales[name], found=scale)
    return {name: (one_or_all(paths), scales[name]) for name, paths in images.items()}
