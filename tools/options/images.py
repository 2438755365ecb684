"""Options of `ldmrt generate` that name images: several are one for each prompt."""

from typing import Any

import click

from ldmrt.runtime.errors import LdmrtError


class ImagePath(click.Path):
    """Takes the path of a file that exists."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if "\0" in str(value):
            self.fail(f"{value!r} has a NUL in it", param, ctx)
        return super().convert(value, param, ctx)


def one_or_all(items: tuple[Any, ...] | list[Any]) -> Any:
    """Return None, the only item, or a list of them."""
    return None if not items else items[0] if len(items) == 1 else list(items)


def collected(controls: tuple[tuple[str, tuple[str, float]], ...]) -> dict[str, tuple[Any, float]]:
    """Return the image and the scale of each control; several images where its name comes several times."""
    images: dict[str, list[str]] = {}
    scales: dict[str, float] = {}
    for name, (image, scale) in controls:
        images.setdefault(name, []).append(image)
        if scales.setdefault(name, scale) != scale:
            raise LdmrtError(f"control {name}", "two scales", expected=scales[name], found=scale)
    return {name: (one_or_all(paths), scales[name]) for name, paths in images.items()}
