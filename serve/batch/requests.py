"""Make requests of lines, and lines of requests that have failed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.files.reading import JsonObject, parse_json
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.pipeline.request.checks import SEEDS, invalid
from ldmrt.runtime.pipeline.request.field_names import SHORT
from ldmrt.runtime.pipeline.request.request import EMBEDDINGS, Request
from ldmrt.runtime.pipeline.request.short_words import BY_STAGE, request_of_words

from .lines import Line

# Fields that no line can hold: arrays, Python's functions and generators, the form of what Python is returned, and
# fields by stage, which stand in the words of `BY_STAGE`.
PYTHON = {*EMBEDDINGS, "generator", "latents", "image_latents", "output_type", "callback_on_step_end", "stages"}
WORDS = {short: name for name, short in SHORT.items() if name not in PYTHON}
IMAGES = ("image", "mask", "ip_adapter_image")
ERROR = "error"  # stands in lines that have failed, and is skipped where they are read again


@dataclass(frozen=True)
class Reader:
    """Makes requests of the lines of one file.

    Attributes:
        json: Whether lines are JSON objects; else they are prompts.
        options: What holds for all lines, by short words; a line's own values win. "seed" is that of the first image.
        folder: Where relative paths of images begin; by default the process's own folder.
    """

    json: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def request(self, line: Line) -> tuple[Request, JsonObject]:
        """Return a line's request, and its values by short words as they stand in the line and in the options.

        Raises:
            LdmrtError: The line is no JSON object, has an unknown word, or asks for what no model can do.
        """
        given = self._given(line)
        values: JsonObject = {**self.options, **given}
        if given.get("seed") is None:
            values["seed"] = self.seed(line)
        return request_of_words({**values, **self._placed(given)}, SHORT), values

    def seed(self, line: Line) -> int:
        """Return the seed of a line that has none: they count up by the images that each line has without its own."""
        return int(self.options.get("seed", 0)) + (line.number - 1) * int(self.options.get("count", 1))

    def failed(self, line: Line, error: str) -> JsonObject:
        """Return a line that has failed as one that can be read again, with its error and its seed."""
        seed = {"seed": self.seed(line)} if self.seed(line) < SEEDS else {}
        if not self.json:
            return {"prompt": line.text, **seed, ERROR: error}
        try:
            given = parse_json("batch", "line", line.text)
        except LdmrtError:
            return {"text": line.text, ERROR: error}
        return {**given, **(seed if given.get("seed") is None else {}), ERROR: error}

    def _given(self, line: Line) -> JsonObject:
        """Return the values that stand in a line, by their short words."""
        if not self.json:
            return {"prompt": line.text}
        given = parse_json("batch", f"line {line.number}", line.text)
        given.pop(ERROR, None)
        values: JsonObject = {}
        for name, value in given.items():
            word = name if name in WORDS else SHORT.get(name)
            if word not in WORDS or word is None:
                near = suggestion(name, WORDS)
                expected = None if near else ", ".join(WORDS)
                raise InvalidRequest("request", f"unknown argument {name!r:.100}{near}", expected=expected)
            if word in values:
                raise InvalidRequest("request", f"{word} stands twice in a line", expected="only one of its names")
            values[word] = _plain(word, value)
        return values

    def _placed(self, given: JsonObject) -> JsonObject:
        """Return those values of a line that are paths of images, from `folder` on."""
        placed: JsonObject = {word: self._path(given[word]) for word in IMAGES if given.get(word) is not None}
        if isinstance(given.get("controls"), dict):
            placed["controls"] = {
                name: (self._path(images), scale) for name, (images, scale) in given["controls"].items()
            }
        return placed

    def _path(self, paths: str | list[str]) -> str | list[str]:
        """Return the path of an image, or a list of them, from `folder` on."""
        return str(self.folder / paths) if isinstance(paths, str) else [str(self.folder / path) for path in paths]


def _plain(word: str, value: Any) -> Any:
    """Return a value of JSON as a request has it: images are paths, and those of controls may have a scale."""
    if word in IMAGES and value is not None:
        return _paths(word, value)
    if word == "controls" and isinstance(value, dict):
        return {name: _control(name, item) for name, item in value.items()}
    if isinstance(value, dict) and word not in (*BY_STAGE, "scheduler_settings", "ip_adapter_scale", "loras"):
        raise invalid(word, "no JSON object", value)
    return value


def _control(name: str, value: Any) -> tuple[str | list[str], float]:
    """Return the images of a control and their scale: of a path, of a list of paths, or of [image, scale]."""
    scaled = isinstance(value, list) and len(value) == 2 and isinstance(value[1], (int, float))
    images, scale = value if scaled else (value, 1.0)
    return _paths(f"controls {name!r}", images), scale


def _paths(word: str, value: Any) -> str | list[str]:
    """Return the path of an image, or a list of them."""
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(path, str) for path in value)):
        return value
    raise invalid(word, "the path of an image, or a list of paths", value)


def as_line(value: JsonObject) -> bytes:
    """Return a JSON object as a line of a file; halves of characters, which UTF-8 cannot hold, are escaped."""
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value).encode() + b"\n"
