"""Read the units of AUTOMATIC1111's ControlNet extension, which come as `alwayson_scripts`.

Fields are those of `ControlNetUnit` of https://github.com/Mikubill/sd-webui-controlnet; control images are drawn from
as they are, as no preprocessor runs here.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.serve.http.bodies import MOST_CONTROLS
from ldmrt.serve.http.images import image_in

if TYPE_CHECKING:
    from PIL.Image import Image

SCRIPT = "controlnet"  # in any case
WITH_HASH = re.compile(r"\s*\[[0-9a-f]{8,}\]$")  # behind a model's name
# Fields that are served with these values alone, as others would change the image.
SERVED: Mapping[str, tuple[Any, ...]] = {
    "module": ("none", "None", "", None),
    "mask": (None, ""),
    "guidance_start": (0,),
    "guidance_end": (1,),
    "control_mode": ("Balanced", 0),
}
# Fields of preprocessors, of memory and of other passes, which change no image here.
IGNORED = ("low_vram", "lowvram", "processor_res", "threshold_a", "threshold_b", "pixel_perfect", "hr_option",
           "save_detected_map", "guessmode", "enabled", "resize_mode")  # fmt: skip
PLAIN = ("Just Resize", 0)  # of `resize_mode`; for an image of the drawing's own ratio all of them do the same
UNIT = "ControlNet"


def controls_of(scripts: object, size: tuple[int | None, int | None]) -> "dict[str, tuple[Image, float]]":
    """Return the controls that scripts ask for: (image, scale) by the name of each.

    Args:
        scripts: `alwayson_scripts` of a body.
        size: The width and the height that it asks for.

    Raises:
        InvalidRequest: Another script is asked for, or a unit asks for what is not served.
    """
    controls = dict[str, tuple["Image", float]]()
    for name, script in _mapping("alwayson_scripts", scripts or {}).items():
        if name.casefold() != SCRIPT:
            raise InvalidRequest("alwayson_scripts", "unsupported", expected=UNIT, found=f"{name!r:.50}")
        units = _mapping(UNIT, script).get("args")
        listed = units if isinstance(units, list) else [units]
        if len(listed) > MOST_CONTROLS:
            problem = "too many controls of a request"
            raise InvalidRequest(UNIT, problem, expected=f"at most {MOST_CONTROLS}", found=len(listed))
        for unit in listed:
            fields = _mapping(UNIT, unit)
            if fields.get("enabled", True) is False:
                continue
            model, control = _control(fields, size)
            if model in controls:
                raise InvalidRequest(UNIT, f"two units of {model!r:.50}", expected="one of each model")
            controls[model] = control
    return controls


def _control(unit: Mapping[str, Any], size: tuple[int | None, int | None]) -> "tuple[str, tuple[Image, float]]":
    """Return the name, the image and the scale of one unit."""
    for field, values in SERVED.items():
        if field in unit and unit[field] not in values:
            hint = "send the image that it makes, with module none" if field == "module" else None
            expected, found = f"{values[0]}", f"{unit[field]!r:.50}"
            raise InvalidRequest(f"{UNIT} {field}", "unsupported", expected=expected, found=found, hint=hint)
    known = {*SERVED, *IGNORED, "image", "input_image", "model", "weight"}
    if odd := [field for field in unit if field not in known]:
        raise InvalidRequest(UNIT, f"unknown field {odd[0]!r:.50}", expected=", ".join(sorted(known)))
    model, weight = unit.get("model"), unit.get("weight", 1.0)
    if not isinstance(model, str) or model in ("", "None"):
        raise InvalidRequest(UNIT, "no model", expected="the name of a control of the bundle")
    text = unit.get("image") or unit.get("input_image")
    if not isinstance(text, str):
        raise InvalidRequest(UNIT, "no image", expected="base64, or data:image/png;base64,...")
    image = image_in(UNIT, text)
    width, height = size
    alike = width is not None and height is not None and image.width * height == image.height * width
    if (mode := unit.get("resize_mode", PLAIN[0])) not in PLAIN and not alike:
        expected = f"{PLAIN[0]}, or an image of the ratio that is drawn"
        raise InvalidRequest(f"{UNIT} resize_mode", "unsupported", expected=expected, found=f"{mode!r:.50}")
    return WITH_HASH.sub("", model), (image, weight)


def _mapping(what: str, value: object) -> Mapping[str, Any]:
    """Return a value that holds fields by their names; refuse another one."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(what, "invalid value", expected="fields by their names", found=f"{value!r:.50}")
    return value
