"""What each field of a `Request` may hold: a check by name, which returns the value as plain Python or is an error."""

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.images.reading import MASK_SOURCES

LARGEST_COUNT = 10**9  # images of a prompt
LARGEST_STEPS, LARGEST_SKIP = 10**6, 1000
LARGEST_SIDE = 2**15  # pixels of an image
LARGEST_SIZE = 2**24  # of the sizes that SDXL is conditioned on, exact in float32
LARGEST_GUIDANCE = 1e6
SEEDS = 2**64

Check = Callable[[str, Any], Any]


def invalid(name: str, expected: object, found: object) -> LdmrtError:
    """The error of a field that holds something else; what was found is printed in short."""
    return LdmrtError("request", f"invalid {name}", expected=expected, found=short(found))


def short(value: object) -> str:
    """A value for a message: numbers as they are, anything else as at most a line of its `repr`."""
    if isinstance(value, (Real, np.bool_)) and not isinstance(value, Integral):
        return str(value)
    printer = reprlib.Repr()
    printer.maxstring = printer.maxother = 60
    try:
        return printer.repr(value).replace("\n", " ")
    except ValueError:  # of a whole number with more digits than Python prints
        return f"a {type(value).__name__}"


@dataclass(frozen=True)
class Whole:
    """A whole number, Python's or NumPy's; True and False are none."""

    least: int = 0
    most: float = math.inf

    def __call__(self, name: str, value: object) -> int:
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise invalid(name, "a whole number", value)
        if int(value) < self.least:
            raise invalid(name, f"at least {self.least}", value)
        if int(value) > self.most:
            raise invalid(name, f"at most {self.most:.0f}", value)
        return int(value)


@dataclass(frozen=True)
class Number:
    """A finite number, Python's or NumPy's; True and False are none."""

    least: float = -math.inf
    most: float = math.inf

    def __call__(self, name: str, value: object) -> float:
        bounded = math.isfinite(self.least) and math.isfinite(self.most)
        expected = f"{self.least:g} to {self.most:g}" if bounded else "a number"
        try:
            number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
        except OverflowError:  # of a whole number or a fraction that no float holds
            number = math.nan
        if not math.isfinite(number) or not self.least <= number <= self.most:
            raise invalid(name, expected, value)
        return number


@dataclass(frozen=True)
class Pair:
    """Two values of one kind."""

    of: Whole | Number
    expected: str

    def __call__(self, name: str, value: Any) -> tuple[Any, Any]:
        if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)) or _length(value) != 2:
            raise invalid(name, self.expected, value)
        try:
            return self.of(name, value[0]), self.of(name, value[1])
        except LdmrtError:
            raise invalid(name, self.expected, value) from None


@dataclass(frozen=True)
class Optional:
    """None, or what another check lets pass."""

    check: Check

    def __call__(self, name: str, value: Any) -> Any:
        return None if value is None else self.check(name, value)


def texts(name: str, value: Any) -> Any:
    """A text, or a list of texts, that can be written as UTF-8."""
    if isinstance(value, str):
        return _text(name, value)
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray, memoryview)):
        raise invalid(name, "text, or a list of texts", value)
    for one in value:
        if not isinstance(one, str):
            raise invalid(name, "text, or a list of texts", value)
        _text(name, one)
    return value


def _text(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"half of one, {text[error.start]!a}, at {error.start}"
        raise LdmrtError("request", f"invalid {name}", expected="text of whole characters", found=found) from None
    return text


def seeds(name: str, value: Any) -> Any:
    """A seed, or one an image."""
    check = Whole(0, SEEDS - 1)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return _seed(check, name, value)
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)) or _length(value) is None:
        raise invalid(name, "a whole number, or one an image", value)
    return [_seed(check, name, one) for one in value]


def _seed(check: Whole, name: str, value: Any) -> int:
    try:
        return check(name, value)
    except LdmrtError:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        raise invalid(name, "0 to 2**64 - 1" if whole else "a whole number", value) from None


def name_of(name: str, value: Any) -> str:
    """A name, such as a scheduler's."""
    if not isinstance(value, str):
        raise invalid(name, "a name", value)
    return value


def mask_source(name: str, value: Any) -> str:
    """Check which channel a mask is taken from."""
    if not isinstance(value, str) or value not in MASK_SOURCES:
        raise invalid(name, " or ".join(MASK_SOURCES), value)
    return value


def interval(name: str, value: Any) -> tuple[float, float]:
    """Two numbers from 0 on, the second above the first."""
    expected = "two noise levels, low and high"
    low, high = Pair(Number(0, 1e30), expected)(name, value)
    if not low < high:
        raise invalid(name, expected, value)
    return low, high


def latents(name: str, value: Any) -> Any:
    """Latents as an array (images, C, height/f, width/f) of float32."""
    try:
        array = np.asarray(value)
        with np.errstate(over="ignore"):  # what is not finite is told of when it is sampled
            array = array.astype(np.float32, copy=False) if array.dtype.kind in "fiu" else array
    except Exception:  # of whatever does not become an array
        raise invalid(name, "an array of numbers (images, C, h, w)", value) from None
    if array.dtype != np.float32:
        raise invalid(name, "an array of numbers (images, C, h, w)", array.dtype)
    if array.ndim != 4:
        raise LdmrtError("request", f"wrong shape of {name}", expected="(images, C, h, w)", found=array.shape)
    return array


def controls(name: str, value: Any) -> dict[str, Any]:
    """Images by the name of a control, each alone or with a scale."""
    if not isinstance(value, Mapping):
        raise invalid(name, "images by the name of a control", value)
    for key, given in value.items():
        if not isinstance(key, str):
            raise invalid(name, "images by the name of a control", key)
        if isinstance(given, tuple):
            if len(given) != 2:
                raise invalid(f"{name} {key!r}", "an image, or (image, scale)", f"{len(given)} values")
            Number(-LARGEST_GUIDANCE, LARGEST_GUIDANCE)(f"scale of {name} {key!r}", given[1])
    return dict(value)


def settings(name: str, value: Any) -> dict[str, Any]:
    """Check that keys of a scheduler's config are texts; their values are checked with the scheduler's class."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise invalid(name, "keys of a scheduler's config, with values", value)
    return dict(value)


def anything(name: str, value: Any) -> Any:
    """An image, which is checked where it is read."""
    return value


def _length(value: Any) -> int | None:
    """Return the length of a list or an array with one axis; None where it is neither."""
    return None if isinstance(value, np.ndarray) and value.ndim != 1 else len(value)


_SHARE = Number(0, 1)
_SIDE = Optional(Whole(1, LARGEST_SIDE))
_SIZE = Pair(Whole(0, LARGEST_SIZE), "two whole numbers")

FIELDS: Mapping[str, Check] = {
    "prompt": texts,
    "negative_prompt": Optional(texts),
    "prompt_2": Optional(texts),
    "negative_prompt_2": Optional(texts),
    "count": Whole(1, LARGEST_COUNT),
    "steps": Whole(1, LARGEST_STEPS),
    "guidance": Number(-LARGEST_GUIDANCE, LARGEST_GUIDANCE),
    "guidance_rescale": _SHARE,
    "guidance_interval": Optional(interval),
    "deep_cache": Optional(Whole(1, LARGEST_STEPS)),
    "seed": seeds,
    "width": _SIDE,
    "height": _SIDE,
    "scheduler": Optional(name_of),
    "scheduler_settings": settings,
    "eta": Optional(_SHARE),
    "clip_skip": Whole(0, LARGEST_SKIP),
    "negative_clip_skip": Whole(0, LARGEST_SKIP),
    "image": anything,
    "strength": _SHARE,
    "denoising_start": Optional(_SHARE),
    "denoising_end": Optional(_SHARE),
    "mask": anything,
    "mask_from": Optional(mask_source),
    "controls": controls,
    "original_size": Optional(_SIZE),
    "crop": _SIZE,
    "target_size": Optional(_SIZE),
    "negative_original_size": Optional(_SIZE),
    "negative_crop": _SIZE,
    "negative_target_size": Optional(_SIZE),
    "aesthetic_score": Number(-LARGEST_GUIDANCE, LARGEST_GUIDANCE),
    "negative_aesthetic_score": Number(-LARGEST_GUIDANCE, LARGEST_GUIDANCE),
    "latents": Optional(latents),
}
