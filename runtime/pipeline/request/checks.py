"""Check what a field of a `Request` holds: each check returns the value as plain Python, or raises."""

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Union, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.tensors import Array

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

LARGEST_COUNT = 10**9  # images of a prompt
LARGEST_STEPS, LARGEST_SKIP = 10**6, 1000
LARGEST_SIDE = 2**15  # pixels of an image
LARGEST_SIZE = 2**24  # of the sizes that SDXL is conditioned on, exact in float32
LARGEST_GUIDANCE = 1e6
LARGEST_HIRES = 8.0
SEEDS = 2**64

Check = Callable[[str, Any], Any]
Text = str | Sequence[str]
Image = Union[Array, str, Path, "PillowImage"]
Images = Image | Sequence[Image]


def invalid(name: str, expected: object, found: object) -> InvalidRequest:
    """Make the error of a field whose value is not as expected; the value is printed in short."""
    return InvalidRequest("request", f"invalid {name}", expected=expected, found=short(found))


def exclusive(name: str, other: str, why: str = "") -> InvalidRequest:
    """Make the error of two fields that exclude one another."""
    problem = f"{name} cannot be combined with {other}"
    return InvalidRequest("request", f"{problem}, {why}" if why else problem, expected="only one of them")


def needs(name: str, other: str) -> InvalidRequest:
    """Make the error of a field that is given without another."""
    return InvalidRequest("request", f"{name} without {other.partition(',')[0]}", expected=other)


def short(value: object) -> str:
    """Print a value for a message: numbers as they are, anything else as at most a line of its `repr`."""
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
    """Takes a whole number, Python's or NumPy's; True and False are none."""

    least: int = 0
    most: float = math.inf

    def __call__(self, name: str, value: object) -> int:
        """Return a value as an int."""
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise invalid(name, "a whole number", value)
        if int(value) < self.least:
            raise invalid(name, f"at least {self.least}", value)
        if int(value) > self.most:
            raise invalid(name, f"at most {self.most:.0f}", value)
        return int(value)


@dataclass(frozen=True)
class Number:
    """Takes a finite number, Python's or NumPy's; True and False are none."""

    least: float = -math.inf
    most: float = math.inf

    def __call__(self, name: str, value: object) -> float:
        """Return a value as a float."""
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
class Several:
    """Takes so many values of one kind."""

    of: Whole | Number
    expected: str
    count: int = 2

    def __call__(self, name: str, value: Any) -> tuple[float, ...]:
        """Return a value as a tuple."""
        if not _is_list(value) or len(value) != self.count:
            raise invalid(name, self.expected, value)
        try:
            return tuple(self.of(name, each) for each in value)
        except LdmrtError:
            raise invalid(name, self.expected, value) from None


@dataclass(frozen=True)
class Optional:
    """Lets None pass, or stand for a default, and checks any other value."""

    check: Check
    default: object = None

    def __call__(self, name: str, value: object) -> object:
        """Check a value that is not None."""
        return self.default if value is None else self.check(name, value)


@dataclass(frozen=True)
class OneOf:
    """Lets some words pass."""

    words: Sequence[str]

    def __call__(self, name: str, value: object) -> str:
        """Check that a value is one of the words; another one is answered with the nearest."""
        if isinstance(value, str) and value in self.words:
            return value
        near = suggestion(value, self.words) if isinstance(value, str) else ""
        raise invalid(f"{name}{near}", ", ".join(self.words), value)


@runtime_checkable
class TorchTensor(Protocol):
    """torch.Tensor, as far as it is read here; torch is not imported."""

    def detach(self) -> "TorchTensor":
        """Return it without its history."""
        ...

    def float(self) -> "TorchTensor":
        """Return it in float32."""
        ...

    def cpu(self) -> object:
        """Return it in the machine's memory."""
        ...


@dataclass(frozen=True)
class Floats:
    """Takes an array of numbers, NumPy's or torch's, with so many axes."""

    axes: str  # such as "(images, C, h, w)"

    def __call__(self, name: str, value: object) -> NDArray[np.float32]:
        """Return a value as an array of float32."""
        expected = f"an array of numbers {self.axes}"
        try:
            if isinstance(value, TorchTensor):
                value = value.detach().float().cpu()  # which NumPy reads, whatever its type, device and history
            array = np.asarray(value)
            with np.errstate(over="ignore"):  # a value that is not finite is found where it is used
                array = array.astype(np.float32, copy=False) if array.dtype.kind in "fiu" else array
        except Exception:  # of any object that does not become an array
            raise invalid(name, expected, value) from None
        if array.dtype != np.float32:
            raise invalid(name, expected, array.dtype)
        if array.ndim != self.axes.count(",") + 1:
            raise InvalidRequest("request", f"wrong shape of {name}", expected=self.axes, found=array.shape)
        return array


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
        raise InvalidRequest("request", f"invalid {name}", expected="text of whole characters", found=found) from None
    return text


def seeds(name: str, value: Any) -> Any:
    """A seed, or one an image."""
    check = Whole(0, SEEDS - 1)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return _seed(check, name, value)
    if not _is_list(value):
        raise invalid(name, "a whole number, or one an image", value)
    return [_seed(check, name, one) for one in value]


def labels(name: str, value: Any) -> Any:
    """A class, or one for each prompt."""
    if _is_list(value):
        return [Whole()(name, one) for one in value]
    return Whole()(name, value)


def layers(name: str, value: Any) -> tuple[int, ...]:
    """The numbers of a network's layers, at least one."""
    if not _is_list(value) or not len(value):
        raise invalid(name, "numbers of layers, such as [7, 8, 9]", value)
    return tuple(Whole(0, LARGEST_SKIP)(name, one) for one in value)


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


def interval(name: str, value: Any) -> tuple[float, float]:
    """Two numbers from 0 on, the second above the first."""
    expected = "two noise levels, low and high"
    low, high = Several(Number(0, 1e30), expected)(name, value)
    if not low < high:
        raise invalid(name, expected, value)
    return low, high


def controls(name: str, value: Any) -> dict[str, Any]:
    """Images by the name of a control, each alone or with a scale."""
    if value is None:
        return {}
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


def with_scale(control: Images | tuple[Images, float]) -> tuple[Images, float]:
    """Split what a control is given: its images and their scale, or the images alone, whose scale is 1."""
    if isinstance(control, tuple) and len(control) == 2 and isinstance(control[1], Real):
        return control[0], float(control[1])
    return control, 1.0


def settings(name: str, value: Any) -> dict[str, Any]:
    """Check that keys of a scheduler's config are texts; their values are checked with the scheduler's class."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise invalid(name, "keys of a scheduler's config, with values", value)
    return dict(value)


OF_A_STAGE: tuple[str, ...] = ("num_inference_steps", "guidance_scale", "guidance_rescale", "scheduler", "eta")
OF_A_STAGE += ("scheduler_settings", "noise_level")


def by_stage(name: str, value: Any) -> dict[str, dict[str, Any]]:
    """Check that fields stand under the names of stages."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(fields, Mapping) for fields in value.values()):
        raise invalid(name, "fields by the name of a stage, such as {'base': {'num_inference_steps': 50}}", value)
    for stage, fields in value.items():
        if odd := [field for field in fields if field not in OF_A_STAGE]:
            raise invalid(f"{name} {stage!r}", f"some of {', '.join(OF_A_STAGE)}", odd[0])
    return {str(stage): dict(fields) for stage, fields in value.items()}


def callback(name: str, value: object) -> object:
    """Check that a value can be called."""
    if not callable(value):
        raise invalid(name, "a function (pipeline, step, timestep, callback_kwargs)", value)
    return value


def anything(name: str, value: object) -> object:
    """Let any value pass: an image, which is checked where it is read, or a generator, which is replaced by seeds."""
    return value


def _is_list(value: object) -> bool:
    """Tell whether a value is a list, or an array with one axis, and no text."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
