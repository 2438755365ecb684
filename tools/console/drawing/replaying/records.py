"""Read the record in the file of an image or an animation: the requests to draw it by, and what else that takes."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.images.animation import FORMATS
from ldmrt.runtime.pipeline.infotext.record import EACH, GRID, KEYS, MADE
from ldmrt.runtime.pipeline.request.field_names import SHORT
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.pipeline.request.short_words import request_of_words
from ldmrt.tools.console.drawing import image_paths
from ldmrt.tools.console.drawing.embedded.animations import kind_of
from ldmrt.tools.console.drawing.embedded.programs import LDMRT, Description
from ldmrt.tools.console.drawing.latents import read_latents
from ldmrt.tools.options.images import IMAGES

from .sources import find_input

# Arguments of `open_pipeline` that a file may choose, with their types; it is not to be trusted with others.
OPENING = {
    "tile": int,
    "tile_passes": int,
    "low_memory": bool,
    "threads": int,
    "compute": str,
    "on_overflow": str,
    "safety": str,
}
MOST_PASSES, MOST_FRAMES = 100, 10_000
VIDEO = "MP4"  # the format that holds no single image
DAMAGE = (
    TypeError,
    KeyError,
    ValueError,
    AttributeError,
    IndexError,
    OverflowError,
)  # of values of other kinds than were written
INPUTS = (*IMAGES, "controls", "latents")


@dataclass(frozen=True)
class Drawn:
    """Holds the request of one image, and the file of its latents with their place there."""

    request: Request
    latents: tuple[Path, int] | None = None


@dataclass(frozen=True)
class Refiner:
    """Describes the bundle that ended the drawing of an image.

    Attributes:
        name: Its name.
        start: The share of the timesteps before it.
        identity: Its digest, and whether its certificate held.
    """

    name: str
    start: float
    identity: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class FrameRecord:
    """Describes the frames of an animation.

    Attributes:
        count: How many there are.
        fps: Frames a second.
        kind: The format of the file, such as "GIF".
        index: The place of the one frame that the file holds; None of an animation.
    """

    count: int
    fps: float
    kind: str
    index: int | None

    @classmethod
    def of(cls, parameters: JsonObject, kind: str) -> "FrameRecord":
        """Read the frames of an animation from the parameters of a file of a format.

        Raises:
            KeyError: A parameter is not there.
            ValueError: There are fewer than two or too many, or the format cannot hold what they say.
        """
        count, fps, index = parameters["frames"], parameters["fps"], parameters.get("frame")
        if type(count) is not int or not 2 <= count <= MOST_FRAMES:
            raise ValueError(f"{count!r:.20} frames")
        if type(fps) not in (int, float) or not 0.1 <= fps <= 100:
            raise ValueError(f"{fps!r:.20} frames a second")
        if index is not None and (type(index) is not int or not 0 <= index < count):
            raise ValueError(f"frame {index!r:.20} of {count}")
        if (kind not in FORMATS.values()) if index is None else (kind == VIDEO):
            raise ValueError(f"{'all' if index is None else 'one'} of {count} frames in a file of {kind}")
        return cls(count, float(fps), kind, index)


@dataclass(frozen=True)
class Record:
    """Holds what the file of an image, a grid of several or an animation says of how it was drawn.

    Attributes:
        image: What the file says.
        made: The record as it stands there.
        columns: How many images of a grid stand in a row; None of one image.
        refiner: The bundle that ended the drawing; None where there was none.
        frames: What the file says of the frames of an animation; None of images.
    """

    image: Description
    made: JsonObject
    columns: int | None = None
    refiner: Refiner | None = None
    frames: FrameRecord | None = None

    @classmethod
    def of(cls, image: Description) -> "Record":
        """Read the record of an image that can be drawn again.

        Raises:
            LdmrtError: Another program drew it, or an ldmrt drew it that wrote no record, or too short a one.
        """
        made = _made(image)
        columns, frames, refiner = None, None, made.get("refiner")
        if isinstance(refiner, str):
            problem, expected = f"{image.path} was drawn with a refiner", "the record of a later version of ldmrt"
            raise LdmrtError("replay", problem, expected=expected, found=f"the name {refiner:.100} alone")
        try:
            if (grid := made.get(GRID)) is not None:
                columns, seeds = grid["columns"], _several(image, "seeds")
                if type(columns) is not int or not 1 <= columns <= len(seeds) == len(_several(image, "prompts")):
                    raise ValueError(f"a grid of {len(seeds)} images in {columns!r:.20} columns")
            json.dumps(image.parameters, ensure_ascii=False).encode()  # as it is written again: not half a character
            kind = kind_of("replay", image.path)
            if _is_animated(image):
                frames = FrameRecord.of(image.parameters or {}, kind)
            elif kind == VIDEO:
                raise ValueError("an image in a video")
            if frames is not None and (grid, refiner) != (None, None):
                raise ValueError("an animation with a grid or a refiner")
            if refiner is not None:
                refiner = Refiner(str(refiner["bundle"]), float(refiner["start"]), refiner)
        except DAMAGE as error:
            raise damaged(image, error) from None
        return cls(image, made, columns, refiner, frames)

    @property
    def parameters(self) -> JsonObject:
        """The parameters of the file without the record."""
        return {name: value for name, value in (self.image.parameters or {}).items() if name != MADE}

    @property
    def formats(self) -> Mapping[str, str]:
        """The formats that it can be saved in, by their suffixes: of an animation, its own."""
        if self.frames is None or self.frames.index is not None:
            return image_paths.FORMATS
        return {suffix: kind for suffix, kind in FORMATS.items() if kind == self.frames.kind}

    @property
    def upscaler(self) -> str | None:
        """The name of the upscale model's bundle between two passes; None where there was none."""
        record = self.made.get("upscaler")
        if record is None:
            return None
        if isinstance(record, dict) and isinstance(name := record.get("bundle"), str):
            return name
        raise damaged(self.image, "an upscale model without a name")

    @property
    def config(self) -> JsonObject | None:
        """The config of a scheduler in place of the bundle's; None where there was none."""
        config = self.made.get("scheduler_config")
        if isinstance(config, (dict, type(None))):
            return config
        raise damaged(self.image, "a scheduler that is no config")

    def drawn(self, folder: Path | None) -> list[Drawn]:
        """Return the requests of all its images, or those that its frames are between.

        Args:
            folder: That of the files that they read; by default they are looked for here and beside the image.

        Raises:
            LdmrtError: The record is damaged, or a file of it is gone or another.
        """
        try:
            if self.columns is None and self.frames is None:
                return [self._drawn(self.parameters["prompt"], self.parameters["seed"], {}, folder)]
            prompts, seeds = _several(self.image, "prompts"), _several(self.image, "seeds")
            if self.frames is not None:
                prompts, each = prompts or [None] * len(seeds), self.made[KEYS]
            else:
                each = self.made[GRID].get(EACH) or [{}] * len(seeds)
            return [
                self._drawn(prompt, seed, own, folder) for prompt, seed, own in zip(prompts, seeds, each, strict=True)
            ]
        except (InvalidRequest, *DAMAGE) as error:
            raise damaged(self.image, error) from None

    def _drawn(self, prompt: object, seed: object, own: JsonObject, folder: Path | None) -> Drawn:
        """Return the request of one image."""
        if not isinstance(prompt, (str, type(None))) or type(seed) is not int:
            raise TypeError("a prompt or a seed of several images")
        words: JsonObject = {**self.made.get("request", {}), **own.get("request", {})}
        given: JsonObject = {**(self.made.get("inputs") or {}), **own.get("inputs", {})}
        values: JsonObject = {"prompt": prompt, "seed": seed, **words}
        if odd := {*INPUTS, "count", "seed"} & {*words}:
            raise KeyError(f"{', '.join(sorted(odd))} outside of the inputs")
        for word in IMAGES:
            if word in given:
                values[word] = str(find_input(self.image, given[word], folder))
        if "controls" in given:
            values["controls"] = {
                name: (str(find_input(self.image, one, folder)), one["scale"])
                for name, one in given["controls"].items()
            }
        latents = None
        if "latents" in given:
            latents = find_input(self.image, given["latents"], folder), int(given["latents"]["place"])
            array = read_latents(latents[0])
            values["latents"] = None if array is None else array[latents[1] : latents[1] + 1]
        return Drawn(request_of_words(values, SHORT), latents)

    def opening(self) -> JsonObject:
        """Return the arguments of `open_pipeline`, with no more threads than there are cores.

        Raises:
            LdmrtError: An argument is unknown, or its value has the wrong type.
        """
        record: JsonObject = self.made["opening"]
        for name, value in record.items():
            if type(value) is not OPENING.get(name):
                raise damaged(self.image, f"opened with {name} {value!r:.100}")
        most = {"threads": os.cpu_count() or 1, "tile_passes": MOST_PASSES}
        return record | {name: min(record[name], limit) for name, limit in most.items() if name in record}

    def loras(self, folder: Path | None) -> dict[str, Path]:
        """Return the files of LoRAs by their names, which have to be as they were."""
        given = self.made["loras"] if isinstance(self.made.get("loras"), dict) else {}
        return {name: find_input(self.image, record, folder) for name, record in given.items()}


def _made(image: Description) -> JsonObject:
    """Return the record as it stands in the file."""
    if image.program != LDMRT or image.parameters is None:
        problem, hint = f"{image.path} was not drawn by ldmrt, or has lost its record", f"ldmrt info {image.path}"
        raise LdmrtError("replay", problem, expected="an image of ldmrt", found=image.program, hint=hint)
    made = image.parameters.get(MADE)
    animated = _is_animated(image)
    of_grid = "seeds" in image.parameters and not animated
    if of_grid and (not isinstance(made, dict) or not isinstance(made.get(GRID), dict)):
        problem = f"{image.path} is a grid of several images, without their record"
        raise LdmrtError("replay", problem, expected="one of them, such as out-00.png")
    kinds = {"opening": dict, **({KEYS: list} if animated else {"request": dict})}
    if not isinstance(made, dict) or any(not isinstance(made.get(name), kind) for name, kind in kinds.items()):
        problem = f"{image.path} lacks the record to draw it by"
        expected, found = "an image of this version of ldmrt, or a later one", f"ldmrt {image.parameters.get('ldmrt')}"
        raise LdmrtError("replay", problem, expected=expected, found=found)
    return made


def _is_animated(image: Description) -> bool:
    """Tell whether a file is an animation, or a frame of one."""
    return "frames" in (image.parameters or {})


def _several(image: Description, name: str) -> Sequence[Any]:
    """Return the list of the prompts or the seeds of several images."""
    values = (image.parameters or {})[name]
    if not isinstance(values, list):
        raise TypeError(f"{name} that are no list")
    return values


def damaged(image: Description, found: object) -> LdmrtError:
    """Make the error of a record that holds other values than were written."""
    return LdmrtError("replay", f"{image.path} has a damaged record", expected="as ldmrt wrote it", found=found)
