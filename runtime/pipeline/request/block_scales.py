"""Check the scale of an IP-Adapter, and give each transformer of a U-Net its own, as diffusers does."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.nearest import suggestion

from .checks import LARGEST_GUIDANCE, Number

SCALE = Number(-LARGEST_GUIDANCE, LARGEST_GUIDANCE)
FORM = "a number, or numbers by block such as {'down': {'block_2': [0.0, 1.0]}, 'mid': 0.5, 'up': 1.0}"
WAYS = ("down", "mid", "up")
Scales = float | list[float]
BlockScales = float | Mapping[str, Scales | Mapping[str, Scales]]


def block_scales(name: str, value: Any) -> Any:
    """Check a number, or numbers by block; a list has one for each transformer of its block."""
    if not isinstance(value, Mapping):
        return SCALE(name, value)
    for way, scales in value.items():
        if way not in WAYS:
            near = suggestion(way, WAYS) if isinstance(way, str) else ""
            problem = f"unknown block {way!r:.40} of {name}{near}"
            raise InvalidRequest("request", problem, expected=", ".join(WAYS))
        for one in scales.values() if isinstance(scales, Mapping) else (scales,):
            for number in one if isinstance(one, (list, tuple)) else (one,):
                SCALE(f"{name} {way!r}", number)
    return {way: dict(scales) if isinstance(scales, Mapping) else scales for way, scales in value.items()}


def scale_of_each(name: str, value: BlockScales, blocks: Sequence[str]) -> list[float]:
    """Return the scale of each transformer: 0 where numbers by block leave it out.

    Args:
        name: The field.
        value: What `block_scales` has checked.
        blocks: The transformers, such as "down.1.0": the second level's first. The middle is "mid".

    Raises:
        InvalidRequest: A block is named that has no transformers, or is given another number of scales than it has.
    """
    if not isinstance(value, Mapping):
        return [float(value)] * len(blocks)
    found = dict.fromkeys(blocks, 0.0)
    for way, scales in value.items():
        levels = dict.fromkeys(block.rpartition(".")[0] for block in blocks if block.startswith(f"{way}."))
        names = {f"block_{level.partition('.')[2]}": f"{level}." for level in levels}
        if isinstance(scales, Mapping):
            if odd := [block for block in scales if block not in names]:
                problem = f"unknown block {odd[0]!r:.40} of {way}{suggestion(str(odd[0]), names)}"
                raise InvalidRequest("request", problem, expected=", ".join(names) or "none")
            by_start = {names[block]: one for block, one in scales.items()}
        else:
            by_start = dict.fromkeys(names.values() if levels else [way], scales)
        for start, one in by_start.items():
            places = [block for block in blocks if block.startswith(start)]
            each = list(one) if isinstance(one, (list, tuple)) else [one]
            if len(each) not in (1, len(places)):
                problem = f"wrong number of {name} for {start.rstrip('.')}"
                expected = " or ".join(map(str, sorted({1, len(places)})))
                raise InvalidRequest("request", problem, expected=expected, found=len(each))
            found |= dict(zip(places, map(float, each * (len(places) if len(each) == 1 else 1)), strict=True))
    return [found[block] for block in blocks]
