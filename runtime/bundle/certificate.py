"""What was measured between an exported model and its reference, and what each difference may be."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ldmrt.runtime.errors import LdmrtError

NAMED = 3  # cases that are named of those that were left out


@dataclass(frozen=True)
class TensorError:
    """One output of a component on one input, as a backend gives it, against the reference."""

    component: str
    backend: str
    case: str
    output: str
    largest: float  # |difference|
    mean: float
    relative: float  # largest, by the largest |value| of the reference
    cosine: float
    limit: float  # of `relative`

    @property
    def within(self) -> bool:
        """Whether the error is within its tolerance; not-a-number never is."""
        return self.relative <= self.limit

    @property
    def failure(self) -> str:
        """Say in one line how far it is off."""
        where = f"{self.component}.{self.output} ({self.case}, {self.backend})"
        found = "not a number" if math.isnan(self.relative) else f"{self.relative:.1e} of the largest value"
        return f"{where}: {found}, at most {self.limit:g}"


@dataclass(frozen=True)
class RowError:
    """A row of a sampler, relative to the largest |value| of the reference.

    `forced`: what the network says, after guidance, of the reference's own latents; an error that is there at once.
    `stepped`: the latents after the row, where the sampler is given the reference's network. `free`: the latents after
    the row of a run of its own; an error that adds up.
    """

    backend: str
    row: int
    t: float
    forced: float
    stepped: float
    free: float
    forced_limit: float
    stepped_limit: float
    free_limit: float

    @property
    def within(self) -> bool:
        """Whether all three errors are within their tolerances."""
        return not self.past

    @property
    def past(self) -> list[str]:
        """Which of the three are past their limits; what is not a number always is."""
        names = ("forced", "stepped", "free")
        return [name for name in names if not getattr(self, name) <= getattr(self, f"{name}_limit")]

    @property
    def failure(self) -> str:
        """Say in one line how far it is off."""
        found = (
            f"{name} {getattr(self, name):.1e}, at most {getattr(self, f'{name}_limit'):.1e}" for name in self.past
        )
        return f"row {self.row} ({self.backend}): {'; '.join(found)}"


@dataclass(frozen=True)
class ImageSimilarity:
    """Two images from the same noise, uint8."""

    backend: str
    prompt: str
    seed: int
    psnr: float  # dB, infinite where they are equal
    ssim: float | None  # None where scikit-image is not installed
    off: float  # the share of pixels that differ by more than two grey levels
    limit: float  # dB, at least

    @property
    def within(self) -> bool:
        """Whether the PSNR reaches its limit."""
        return self.psnr >= self.limit

    @property
    def failure(self) -> str:
        """Say in one line how far it is off."""
        return f"picture of seed {self.seed} ({self.backend}): {self.psnr:.1f} dB, at least {self.limit:g}"


@dataclass(frozen=True)
class ShortcutCost:
    """What a shortcut costs, as a backend draws it: an image with it against the same without. It is asked for
    knowingly, so it is stated and has no limit.
    """

    backend: str
    shortcut: str
    prompt: str
    seed: int
    psnr: float  # dB, infinite where they are equal

    @property
    def said(self) -> str:
        """Say the PSNR in words."""
        return "identical" if self.psnr == math.inf else f"{self.psnr:.1f} dB"


@dataclass(frozen=True)
class SkippedCase:
    """A case that a backend has no engine for."""

    component: str  # or "rows", "picture"
    backend: str
    case: str
    why: str


@dataclass(frozen=True)
class Certificate:
    """Everything that was measured, and on what: `about` holds tolerances with their reasons, request, versions,
    hardware and the hashes of both sides. `origin` names what is not of the checkpoint at all, `left_out` what could
    not be measured. It stands in the manifest.
    """

    figures: tuple[TensorError, ...]
    drifts: tuple[RowError, ...]
    pictures: tuple[ImageSimilarity, ...]
    about: Mapping[str, Any] = field(repr=False)
    origin: tuple[str, ...] = ()
    costs: tuple[ShortcutCost, ...] = ()
    left_out: tuple[SkippedCase, ...] = ()

    @property
    def within(self) -> bool:
        """Whether everything is within its tolerance, and something was measured."""
        return bool(self.figures) and not self.failures

    @property
    def failures(self) -> list[str]:
        """Return one line for each thing of another checkpoint or past its tolerance, in the order of their making."""
        measured: tuple[TensorError | RowError | ImageSimilarity, ...] = (*self.figures, *self.drifts, *self.pictures)
        past = [one.failure for one in measured if not one.within]
        return [*(f"not of this checkpoint: {one}" for one in self.origin), *past]

    def unproven(self, components: Iterable[str]) -> list[str]:
        """Return one line for what was not measured at all of a bundle of these components."""
        seen = {one.component for one in self.figures} | {one.component for one in self.left_out}
        said = [f"nothing of {name} was measured" for name in components if name not in seen]
        for name, some in (("rows", self.drifts), ("picture", self.pictures)):
            said += [] if some or name in seen else [f"no {name.removesuffix('s')} was measured"]
        return said

    @property
    def gaps(self) -> list[str]:
        """One line for each component and backend of which cases were left out: how many, the first ones, and why the
        first.
        """
        groups: dict[tuple[str, str], list[SkippedCase]] = {}
        for one in self.left_out:
            groups.setdefault((one.component, one.backend), []).append(one)
        said = []
        for (component, backend), group in groups.items():
            cases = ", ".join([*(one.case for one in group[:NAMED]), *(["..."] if group[NAMED:] else [])])
            said.append(f"{component} on {backend}, {len(group)} skipped ({cases}): {group[0].why}")
        return said

    @property
    def culprit(self) -> str:
        """Where it began, by what is past its tolerance and what is not; empty where all is within."""
        for one in self.figures:
            if not one.within:
                return one.component
        past = {name for one in self.drifts for name in one.past}
        if "forced" in past:  # the U-Net alone was right
            return "guidance, or what the U-Net is told of words and sizes"
        if "stepped" in past:
            return "scheduler"
        if any(not one.within for one in self.pictures) and not past:
            return "decoding"
        return "rounding that adds up" if past else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is infinite or not a number as a string, which JSON has no other way for."""
        return {
            "figures": [plain(one) for one in self.figures],
            "rows": [plain(one) for one in self.drifts],
            "pictures": [plain(one) for one in self.pictures],
            "within": self.within,
            "about": dict(self.about),
            "origin": list(self.origin),
            "costs": [plain(one) for one in self.costs],
            "left_out": [plain(one) for one in self.left_out],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Certificate":
        """Read what `to_json` gave."""
        try:
            about = dict(value["about"])
            about["bundle"] = dict(about["bundle"])
            if not all(isinstance(one, str) for one in about["bundle"].values()):
                raise TypeError("about: bundle")
            return cls(
                tuple(_read(TensorError, one) for one in value["figures"]),
                tuple(_read(RowError, one) for one in value["rows"]),
                tuple(_read(ImageSimilarity, one) for one in value["pictures"]),
                about,
                tuple(map(str, value["origin"])),
                tuple(_read(ShortcutCost, one) for one in value.get("costs", ())),  # older ones have none
                tuple(_read(SkippedCase, one) for one in value.get("left_out", ())),  # unknown to older certificates
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            problem, hint = "the certificate cannot be read", "ldmrt verify BUNDLE --against CHECKPOINT --store"
            raise LdmrtError("manifest", problem, found=f"{error!r:.200}", hint=hint) from None


def plain(one: Any) -> dict[str, Any]:
    """A dataclass as JSON holds it: what is infinite or not a number as a string."""
    values = asdict(one)
    return {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in values.items()}


def _read(kind: Any, value: Mapping[str, Any]) -> Any:
    """A dataclass from plain values; TypeError or ValueError where one is not of its field's type."""
    numbers = {one.name for one in fields(kind) if one.type in (float, "float", float | None)}
    read = {k: float(v) if k in numbers and v is not None else v for k, v in value.items()}
    for one in fields(kind):
        if one.type in (str, int) and type(read.get(one.name)) is not one.type:
            raise TypeError(f"{kind.__name__}.{one.name}")
        if one.type is float and read.get(one.name) is None:
            raise TypeError(f"{kind.__name__}.{one.name}")
    return kind(**read)
