"""Read the stages of a manifest, and refuse what the pipeline cannot run."""

import re
from collections.abc import Mapping
from typing import TypeVar

from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.tensors import TensorSpec

from .contents import is_name
from .graphs import DENOISERS
from .manifest import MANIFEST
from .stages import (
    CODECS,
    FILL_KINDS,
    IMAGE_KINDS,
    KEPT,
    KINDS,
    LARGEST,
    MASK_KINDS,
    MOST,
    NOISED_KINDS,
    PIXELS,
    PREVIEW_KEYS,
    PROMPTS,
    SCALES,
    SKIP,
    SMALL_KINDS,
    SPACE,
    STAGE,
    TIMESTEP,
    Guide,
    Row,
    Source,
    Space,
    Stage,
)

KEYS = ("channels", "factor", "scaling_factor", *SPACE)
STATED = ("name", "space", "own", "reads", "guide", "shortens", "depth", "preview", *STAGE)
BESIDE = (*MASK_KINDS, "mask_pixels", *IMAGE_KINDS)
OTHERS = tuple(kind for kind in KINDS if kind not in ("state", "timestep", *BESIDE))
DEPTHS, LEAST = (0, 1, 3), (-1.0, 0.0)
# Texts in the settings of sources that are no names: "7,8,9", and what a text encoder is told around a prompt.
TEXTS = {
    "layers": re.compile(r"\d{1,4}(,\d{1,4}){0,999}", re.ASCII),
    "blocks": re.compile(r"(mid|(down|up)\.\d{1,2}\.\d{1,2})(,(mid|(down|up)\.\d{1,2}\.\d{1,2})){0,999}", re.ASCII),
    "instruction": re.compile(r"[^\ud800-\udfff]{1,9999}"),
    "template": re.compile(r"[^\ud800-\udfff{}]{0,999}\{\}[^\ud800-\udfff{}]{0,999}"),
}
T = TypeVar("T", str, float)
HINT = "export again, or install the ldmrt that made it"


def stages_from_json(value: object) -> tuple[Stage, ...]:
    """Read the stages of a manifest.

    Args:
        value: The manifest's list, as `Stage.to_json` writes its items.

    Raises:
        BundleError: An entry is damaged, or of a newer ldmrt.
    """
    stages = _list("stages", value, least=1)
    if len(stages) > 1:
        raise BundleError("bundle", "unsupported number of stages", expected=1, found=len(stages), hint=HINT)
    return tuple(_stage(f"stage {place}", stage) for place, stage in enumerate(stages))


def check_inputs(stage: Stage, inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse a stage that gives its network other inputs than the network has, apart from those of controls.

    Raises:
        BundleError: Names the stage and the input.
    """
    names = {spec.name for spec in inputs if "residual" not in spec.name}
    width = next((spec.shape[1:2] for spec in inputs if spec.name == stage.state), ())
    if width != (stage.input_channels,):
        problem = f"stage {stage.name} gives {stage.state} another number of channels"
        raise BundleError("bundle", problem, expected=", ".join(map(str, width)), found=stage.input_channels, hint=HINT)
    expected = f"the inputs of the network: {', '.join(sorted(names))}"
    if missing := names - stage.reads.keys():
        raise BundleError("bundle", f"stage {stage.name} gives no {min(missing)}", expected=expected, hint=HINT)
    if unknown := stage.reads.keys() - names:
        raise BundleError("bundle", f"stage {stage.name} gives unknown {min(unknown)}", expected=expected, hint=HINT)


def _stage(where: str, value: object) -> Stage:
    entry = _object(where, {**STAGE, "preview": None, **_object(where, value)}, *STATED)
    if not is_name(entry["name"]):
        raise _damaged(f"name of {where}", "a name", entry["name"])
    space = _object(f"space of {where}", {**SPACE, **_object(f"space of {where}", entry["space"])}, *KEYS)
    sides = [_whole(f"own of {where}", side, LARGEST**2) for side in _list(f"own of {where}", entry["own"])]
    if len(sides) != 2:
        raise _damaged(f"own of {where}", "height and width", sides)
    reads = {
        str(name): tuple(_source(f"{name!r:.50} of {where}", item) for item in _list(f"{name!r:.50}", items, least=1))
        for name, items in _object(f"reads of {where}", entry["reads"]).items()
    }
    stage = Stage(
        Space(
            _whole(f"channels of {where}", space["channels"]),
            _whole(f"factor of {where}", space["factor"]),
            _number(f"scaling_factor of {where}", space["scaling_factor"]),
            _one_of(f"codec of {where}", space["codec"], CODECS),
            float(_one_of(f"least of {where}", space["least"], LEAST)),
            _real(f"shift_factor of {where}", space["shift_factor"]),
            _whole(f"patch of {where}", space["patch"], MOST),
        ),
        own=(sides[0], sides[1]),
        reads=reads,
        guide=_guide(f"guide of {where}", entry["guide"]),
        shortens=_truth(f"shortens of {where}", entry["shortens"]),
        depth=_depth(f"depth of {where}", entry["depth"]),
        name=entry["name"],
        network=_one_of(f"network of {where}", entry["network"], DENOISERS),
        largest=_whole(f"largest of {where}", entry["largest"], LARGEST**2, least=0),
        trailing=_truth(f"trailing of {where}", entry["trailing"]),
        guidance_scale=_real(f"guidance_scale of {where}", entry["guidance_scale"]),
    )
    _check_fit(where, stage)
    return stage if entry["preview"] is None else _previewed(f"preview of {where}", stage, entry["preview"])


def _previewed(where: str, stage: Stage, value: object) -> Stage:
    """Add a preview decoder to a stage that has an autoencoder."""
    if stage.space.codec == PIXELS:
        raise _damaged(where, "none without an autoencoder", value)
    scale, shift = (_object(where, value, *PREVIEW_KEYS)[name] for name in PREVIEW_KEYS)
    return stage.previewed(_number(where, scale), _real(where, shift))


def _check_fit(where: str, stage: Stage) -> None:
    """Refuse sources that cannot stand where they are, or that lack another."""
    every = {name: [source.kind for source in sources] for name, sources in stage.reads.items()}
    beside = [source.kind for source in stage.beside]
    others = {name: kinds for name, kinds in every.items() if name not in (stage.state, TIMESTEP)}
    noised, level = any(kind in NOISED_KINDS for kind in beside), stage.source("noise_level") is not None
    blank = {kind for row in stage.guide.rows for kind in row.blank}
    classes = stage.source("class")
    null = classes is not None and bool(classes.setting("null"))
    kept = stage.source(KEPT) is not None
    skips = [KEPT in row.blank for row in stage.guide.rows]
    absent = [*beside, *(["class"] if null else []), *([KEPT] if kept else [])]
    for part, expected, holds in (
        ("sample", f"the state, then each once: {', '.join(BESIDE)}", every.get(stage.state) == ["state", *beside]),
        ("sample", f"each once: {', '.join(BESIDE)}", set(beside) <= {*BESIDE} and len({*beside}) == len(beside)),
        ("sample", f"one of {', '.join(SMALL_KINDS)}", sum(kind in SMALL_KINDS for kind in beside) <= 1),
        ("sample", "a small image enlarged 1 to 16 times", 0 < stage.enlarges <= MOST * stage.space.factor),
        ("sample", "mask and masked_image", not stage.takes_mask or {*beside} in ({*MASK_KINDS}, {*FILL_KINDS})),
        ("space", "factor 1 without an autoencoder", stage.space.codec != PIXELS or stage.space.factor == 1),
        ("space", "least -1 with an autoencoder", stage.space.codec == PIXELS or stage.space.least == -1),
        ("timestep", "the timestep", every.get(TIMESTEP) == ["timestep"]),
        ("reads", "one source for each other input", all(len(kinds) == 1 for kinds in others.values())),
        ("reads", f"one of {', '.join(OTHERS)}", all(kind in OTHERS for kinds in others.values() for kind in kinds)),
        ("reads", f"{' or '.join(NOISED_KINDS)} with noise_level", noised is level),
        ("reads", "a class beside the one that is none", not null or stage.classes > 0),
        ("blank", ", ".join(absent) or "nothing", blank <= {*absent}),
        ("rows", f"{KEPT} blank in the first, where it is an input", skips == [kept, *[False] * (len(skips) - 1)]),
        ("scales", f"{SKIP} of the first row", [scale == SKIP for scale in stage.guide.scales] == skips[:-1]),
        ("scales", "each once", len({*stage.guide.scales}) == len(stage.guide.scales)),
    ):
        if not holds:
            raise _damaged(f"{part} of {where}", expected, stage.to_json().get(part, stage.to_json()["reads"]))


def _source(where: str, value: object) -> Source:
    entry = _object(where, value)
    kind, settings = entry.get("from"), {name: setting for name, setting in entry.items() if name != "from"}
    if not isinstance(kind, str) or kind not in KINDS:
        raise _damaged(where, f"one of {', '.join(KINDS)}", kind)
    needed = {name for name, type_ in KINDS[kind].items() if type_ is not bool}
    for name in settings.keys() | needed:
        setting, expected = settings.get(name), KINDS[kind].get(name)
        text = TEXTS[name].fullmatch(str(setting)) is not None if name in TEXTS else is_name(setting)
        fits = text if expected is str else not isinstance(setting, int) or 0 <= setting < LARGEST
        if expected is None or type(setting) is not expected or not fits:
            raise _damaged(where, f"settings of {kind}: {', '.join(KINDS[kind]) or 'none'}", {name: setting})
    return Source(kind, settings)


def _guide(where: str, value: object) -> Guide:
    entry = _object(where, value, "rows", "scales")
    rows = tuple(_row(where, row) for row in _list(where, entry["rows"], least=1))
    scales = tuple(str(scale) for scale in _list(where, entry["scales"]))
    if len(scales) != len(rows) - 1 or any(scale not in SCALES for scale in scales):
        raise _damaged(where, f"a scale for each row but the first, of {', '.join(SCALES)}", entry["scales"])
    return Guide(rows, scales)


def _row(where: str, value: object) -> Row:
    entry = _object(where, value, "prompt", "blank")
    blank = tuple(str(kind) for kind in _list(where, entry["blank"]))
    if entry["prompt"] not in PROMPTS or any(kind not in KINDS for kind in blank):
        raise _damaged(where, f"a prompt, {' or '.join(PROMPTS)}, and sources", entry)
    return Row(entry["prompt"], blank)


def _object(where: str, value: object, *keys: str) -> JsonObject:
    """Return a JSON object that has these keys and no others; without keys, any."""
    if not isinstance(value, Mapping) or (keys and value.keys() != {*keys}):
        raise _damaged(where, f"a JSON object with {', '.join(keys)}" if keys else "a JSON object", value)
    return dict(value)


def _list(where: str, value: object, least: int = 0) -> list[object]:
    """Return a list of at least so many values, and of few."""
    if not isinstance(value, list) or not least <= len(value) <= MOST:
        raise _damaged(where, f"a list of {least} to {MOST}", value)
    return value


def _whole(where: str, value: object, most: int = LARGEST, least: int = 1) -> int:
    """Return a whole number, above 0 unless another least one is given."""
    if type(value) is not int or not least <= value <= most:
        raise _damaged(where, f"{least} to {most}", value)
    return value


def _real(where: str, value: object) -> float:
    """Return a number of any sign."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e9:
        raise _damaged(where, "a number", value)
    return float(value)


def _number(where: str, value: object) -> float:
    """Return a number above 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
        raise _damaged(where, "a number above 0", value)
    return float(value)


def _one_of(where: str, value: object, known: tuple[T, ...]) -> T:
    """Return one of some values."""
    for one in known:
        if type(one) is type(value) and one == value:
            return one
    raise _damaged(where, " or ".join(map(str, known)), value)


def _depth(where: str, value: object) -> int:
    """Return a number of channels of a depth."""
    if type(value) is not int or value not in DEPTHS:
        raise _damaged(where, " or ".join(map(str, DEPTHS)), value)
    return value


def _truth(where: str, value: object) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise _damaged(where, "true or false", value)
    return value


def _damaged(where: str, expected: str, found: object) -> BundleError:
    """Make the error of an entry that is not as expected."""
    return BundleError(
        "bundle", f"{MANIFEST} is damaged at {where}", expected=expected, found=f"{found!r:.100}", hint=HINT
    )
