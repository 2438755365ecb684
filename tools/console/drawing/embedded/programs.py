"""Identify the program that made an image, and read the parameters it wrote into one form."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject, decode_json
from ldmrt.runtime.images.exif import INFOTEXT, OWN
from ldmrt.runtime.pipeline.infotext.text import read_infotext

from .comfyui import read_graph
from .fields import read_fields

LDMRT = "ldmrt"
SOURCE = "source"  # the key of the parameters of the image that an upscale model has enlarged
A1111, COMFYUI, INVOKEAI = "AUTOMATIC1111's web UI", "ComfyUI", "InvokeAI"
# The web UI's names of settings, and the names that they have here; others keep theirs.
_INFOTEXT = {
    "Steps": "steps", "Sampler": "sampler", "Schedule type": "scheduler", "CFG scale": "guidance", "Seed": "seed",
    "Model": "model", "Model hash": "model_hash",
}  # fmt: skip
_INVOKEAI = {
    "cfg_scale": "guidance",
    "guidance": "guidance",
    "scheduler": "sampler",
    "sampler": "sampler",
    "model_weights": "model",
}
_SAME = ("steps", "seed", "width", "height")


@dataclass(frozen=True)
class Description:
    """Holds what the file of an image says of it.

    Attributes:
        path: The file.
        program: The program that drew the image.
        prompt: The prompt; None where nodes of ComfyUI computed it.
        negative: The negative prompt, likewise; "" where there is none.
        settings: What else it says: "steps", "sampler", "scheduler", "guidance", "seed", "width", "height", "model" and
            "model_hash" under these names, what is known of them.
        parameters: ldmrt's own parameters; None of other programs.
    """

    path: Path
    program: str
    prompt: str | None
    negative: str | None
    settings: JsonObject
    parameters: JsonObject | None = field(default=None, repr=False)

    def to_json(self) -> JsonObject:
        """Return what `ldmrt info --json` prints: JSON has no NaN and no infinity, for which there is null."""
        said = {
            "file": str(self.path),
            "program": self.program,
            "prompt": self.prompt,
            "negative_prompt": self.negative,
        }
        plain: JsonObject = _finite({**said, "settings": self.settings, "parameters": self.parameters})
        return plain


def describe(where: str, path: Path) -> Description:
    """Read what the file of an image says of it.

    Args:
        where: What an error begins with.
        path: The file.

    Raises:
        LdmrtError: The file cannot be read, is no image, or says nothing that is understood.
    """
    fields = read_fields(where, path)
    for read in READERS:
        if (found := read(path, fields)) is not None:
            return found
    expected = f"the metadata of ldmrt, {A1111}, {COMFYUI} or {INVOKEAI}"
    found_names = ", ".join(fields) if fields else "none"
    raise LdmrtError(where, f"{path} does not say how it was drawn", expected=expected, found=found_names)


def _own(path: Path, fields: Mapping[str, str]) -> Description | None:
    said = _json(fields.get(OWN))
    if said is None:
        return None
    drawn = said
    while "upscaler" in drawn and isinstance(drawn.get(SOURCE), dict):
        drawn = drawn[SOURCE]  # what was enlarged
    settings = {
        "steps": drawn.get("steps"), "sampler": drawn.get("scheduler"), "guidance": drawn.get("guidance"),
        "seed": drawn.get("seed", drawn.get("seeds")), "width": said.get("width"), "height": said.get("height"),
        "model": drawn.get("bundle"), "frames": said.get("frames"), "fps": said.get("fps"),
        "upscaler": said.get("upscaler"),
    }  # fmt: skip
    known = {name: value for name, value in settings.items() if value is not None}
    prompt, negative = drawn.get("prompt", drawn.get("prompts")), drawn.get("negative_prompt")
    if "upscaler" in drawn and (other := _a1111(path, fields)) is not None:  # which another program drew
        own = {name: value for name, value in known.items() if name != "model"}  # which is the upscale model alone
        prompt, negative, known = other.prompt, other.negative, {**other.settings, **own}
    return Description(path, LDMRT, _text(prompt), _text(negative), known, said)


def _invokeai(path: Path, fields: Mapping[str, str]) -> Description | None:
    """Read the metadata of InvokeAI from version 3 on, or of version 2."""
    said = _json(fields.get("invokeai_metadata"))
    if said is None:
        old = _json(fields.get("sd-metadata"))
        if old is None or not isinstance(old.get("image"), dict):
            return None
        said = {**old["image"], **{name: old[name] for name in ("model_weights", "model_hash") if name in old}}
        prompts = said.get("prompt")
        first = prompts[0] if isinstance(prompts, list) and prompts else prompts
        text = _text(first.get("prompt") if isinstance(first, dict) else first)
        said["positive_prompt"], _, rest = text.partition(" [")
        said["negative_prompt"] = rest.removesuffix("]")
    settings: JsonObject = {name: said[name] for name in _SAME if said.get(name) is not None}
    settings |= {ours: said[name] for name, ours in _INVOKEAI.items() if said.get(name) is not None}
    model = said.get("model")
    if isinstance(model, dict):
        settings |= {"model": model.get("name", model.get("model_name")), "model_hash": model.get("hash")}
    elif said.get("model_hash"):
        settings["model_hash"] = said["model_hash"]
    known = {name: value for name, value in settings.items() if value is not None}
    return Description(path, INVOKEAI, _text(said.get("positive_prompt")), _text(said.get("negative_prompt")), known)


def _comfyui(path: Path, fields: Mapping[str, str]) -> Description | None:
    graph = _json(fields.get("prompt"))
    found = None if graph is None else read_graph(graph)
    return None if found is None else Description(path, COMFYUI, found.prompt, found.negative, found.settings)


def _a1111(path: Path, fields: Mapping[str, str]) -> Description | None:
    said = read_infotext(fields.get(INFOTEXT, ""))
    if said is None:
        return None
    settings: JsonObject = {_INFOTEXT.get(name, name): value for name, value in said.settings.items()}
    width, times, height = str(settings.pop("Size", "")).partition("x")
    settings |= {"width": width, "height": height} if times else {}
    texts = ("model", "model_hash")  # which digits alone may be
    plain = {name: value if name in texts else _number(value) for name, value in settings.items()}
    program = LDMRT if str(plain.get("Version", "")).startswith("ldmrt") else A1111
    return Description(path, program, said.prompt, said.negative, plain)


READERS: tuple[Callable[[Path, Mapping[str, str]], Description | None], ...] = (_own, _invokeai, _comfyui, _a1111)


def _json(text: str | None) -> JsonObject | None:
    """Return a JSON object; None where a text is none."""
    try:
        value: Any = None if text is None else decode_json(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(value: object) -> str:
    """Return a text, or the lines of a list of texts."""
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return "" if value is None else str(value)


def _finite(value: Any) -> Any:
    """Return a value with None in the place of each number that is not finite: Python's reader takes "NaN" for one."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: object) -> object:
    """Return the finite number that a text is, or the text where its number would be written otherwise."""
    text = str(value)
    try:
        number = int(text) if text.isascii() and text.isdigit() else float(text)
        return number if str(number) == text and math.isfinite(number) else value
    except ValueError:
        return value
