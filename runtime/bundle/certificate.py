"""The measured differences between an exported model and its reference, each with its tolerance."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, TypeVar

from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.reading import JsonObject

from .graphs import DECODER, UPSCALER, denoiser_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

NAMED = 3  # skipped cases that are named
PARTS = ("figures", "drifts", "pictures", "costs", "left_out", "times")  # of a certificate, by backend
Islands = Mapping[str, Mapping[str, str]]  # by component: modules that compute in float32, with the reason of each


@dataclass(frozen=True)
class TensorError:
    """One output of a component for one input, as a backend computes it, against the reference."""

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
        """Tell whether the error is within its tolerance; not-a-number never is."""
        return self.relative <= self.limit

    @property
    def failure(self) -> str:
        """State in one line how far the output is off."""
        where = f"{self.component}.{self.output} ({self.case}, {self.backend})"
        error = "not a number" if math.isnan(self.relative) else f"{self.relative:.1e} of the largest value"
        return f"{where}: {error}, at most {self.limit:g}"


@dataclass(frozen=True)
class RowError:
    """Three errors of one row of a sampler, relative to the largest |value| of the reference.

    `forced`: the prediction after guidance for the reference's own latents: an error of this row alone.
    `stepped`: the latents after the row, where the sampler takes the reference's prediction.
    `free`: the latents after the row of a run of its own, in which errors accumulate.
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
        """Tell whether all three errors are within their tolerances."""
        return not self.past

    @property
    def past(self) -> list[str]:
        """Name the errors that exceed their limits; not-a-number always does."""
        names = ("forced", "stepped", "free")
        return [name for name in names if not getattr(self, name) <= getattr(self, f"{name}_limit")]

    @property
    def failure(self) -> str:
        """State in one line how far the row is off."""
        errors = (
            f"{name} {getattr(self, name):.1e}, at most {getattr(self, f'{name}_limit'):.1e}" for name in self.past
        )
        return f"row {self.row} ({self.backend}): {'; '.join(errors)}"


@dataclass(frozen=True)
class ImageSimilarity:
    """Two images from the same noise, uint8: one of the backend, one of the reference."""

    backend: str
    prompt: str
    seed: int
    psnr: float  # dB, infinite where they are equal
    ssim: float | None  # None where scikit-image is not installed
    off: float  # the share of pixels that differ by more than two grey levels
    limit: float  # dB, at least

    @property
    def within(self) -> bool:
        """Tell whether the PSNR reaches its limit."""
        return self.psnr >= self.limit

    @property
    def failure(self) -> str:
        """State in one line how far the image is off."""
        return f"image of seed {self.seed} ({self.backend}): {self.psnr:.1f} dB, at least {self.limit:g}"


@dataclass(frozen=True)
class ShortcutCost:
    """The cost of a shortcut on a backend: an image with it against the same image without it.

    Users choose a shortcut knowingly, so its cost is stated and has no limit.
    """

    backend: str
    shortcut: str
    prompt: str
    seed: int
    psnr: float  # dB, infinite where they are equal

    @property
    def psnr_text(self) -> str:
        """Write the PSNR in words."""
        return "identical" if self.psnr == math.inf else f"{self.psnr:.1f} dB"


@dataclass(frozen=True)
class TimeGain:
    """The time of a backend in a narrow precision beside float32, by turns on one machine. It has no limit."""

    backend: str
    what: str  # "a row", with its guidance and controls, or "decoding"
    seconds: float  # the median
    ratio: float  # to float32, the median of the turns' own ratios
    calls: int  # of each

    @property
    def text(self) -> str:
        """Write the ratio in words."""
        return f"{self.ratio:.2f} of fp32's time"


@dataclass(frozen=True)
class SkippedCase:
    """A case that a backend has no engine for."""

    component: str  # or "rows", "picture"
    backend: str
    case: str
    why: str


@dataclass(frozen=True)
class Certificate:
    """All measurements of a bundle, and the circumstances of them. It stands in the manifest.

    `about` holds tolerances with their reasons, the request, versions, hardware and the hashes of both sides; `origin`
    names networks that are not the checkpoint's, `left_out` the cases that could not be measured, and `islands` the
    modules that a backend keeps in float32, by its name and precision, such as "openvino bf16", also where there are
    none. `times` says what narrow precisions gain.
    """

    figures: tuple[TensorError, ...]
    drifts: tuple[RowError, ...]
    pictures: tuple[ImageSimilarity, ...]
    about: JsonObject = field(repr=False)
    origin: tuple[str, ...] = ()
    costs: tuple[ShortcutCost, ...] = ()
    left_out: tuple[SkippedCase, ...] = ()
    islands: Mapping[str, Islands] = field(default_factory=dict)
    times: tuple[TimeGain, ...] = ()

    @property
    def within(self) -> bool:
        """Tell whether everything is within its tolerance, and something was measured."""
        return bool(self.figures) and not self.failures

    @property
    def failures(self) -> list[str]:
        """List everything that is of another checkpoint or past its tolerance, in the order of measurement."""
        return [*(f"not of this checkpoint: {name}" for name in self.origin), *self.past_limit(self.backends)]

    @property
    def backends(self) -> tuple[str, ...]:
        """Name the backends that were measured, with their precisions, in the order of measurement."""
        measured: tuple[TensorError | RowError | ImageSimilarity, ...] = (*self.figures, *self.drifts, *self.pictures)
        return tuple(dict.fromkeys(one.backend for one in measured))

    def past_limit(self, backends: Collection[str]) -> list[str]:
        """List everything of these backends that is past its tolerance, in the order of measurement."""
        measured: tuple[TensorError | RowError | ImageSimilarity, ...] = (*self.figures, *self.drifts, *self.pictures)
        return [one.failure for one in measured if one.backend in backends and not one.within]

    def exact(self) -> "Certificate":
        """Return the part of it that is of backends in the bundle's own precision.

        A narrow precision is a choice, whose failures do not touch the others.
        """
        every: JsonObject = {name: getattr(self, name) for name in PARTS}
        parts: JsonObject = {
            name: tuple(one for one in some if one.backend not in self.islands) for name, some in every.items()
        }
        return replace(self, **parts, islands={})

    def unproven(self, components: Collection[str]) -> list[str]:
        """List what was not measured at all of a bundle with these components."""
        seen = {figure.component for figure in self.figures} | {case.component for case in self.left_out}
        lines = [f"nothing of {name} was measured" for name in components if name not in seen]
        for key, name, measured in (("rows", "row", self.drifts), ("picture", "image", self.pictures)):
            lines += [] if measured or key in seen or UPSCALER in components else [f"no {name} was measured"]
        return lines

    @property
    def gaps(self) -> list[str]:
        """List the skipped cases by component and backend: their number, the first ones, and why the first."""
        groups: dict[tuple[str, str], list[SkippedCase]] = {}
        for case in self.left_out:
            groups.setdefault((case.component, case.backend), []).append(case)
        lines = []
        for (component, backend), group in groups.items():
            cases = ", ".join([*(case.case for case in group[:NAMED]), *(["..."] if group[NAMED:] else [])])
            lines.append(f"{component} on {backend}, {len(group)} skipped ({cases}): {group[0].why}")
        return lines

    @property
    def culprit(self) -> str:
        """Name where the errors begin, judged by the tolerances that hold; empty where all hold.

        A U-Net or decoder that was not measured alone, as that takes the checkpoint, stands before what is around it.
        """
        if failed := [figure.component for figure in self.figures if not figure.within]:
            return failed[0]
        alone, past = {figure.component for figure in self.figures}, {n for drift in self.drifts for n in drift.past}
        if "forced" in past:
            network = denoiser_of(self.about.get("checkpoint", ()))
            return "guidance or conditioning" if network in alone else f"{network}, guidance or conditioning"
        if "stepped" in past:
            return "scheduler"
        if any(not image.within for image in self.pictures) and not past:
            known = DECODER in alone or DECODER not in self.about.get("checkpoint", ())
            return "decoding" if known else "vae_decoder or decoding"
        return "accumulated rounding" if past else ""

    def to_json(self) -> JsonObject:
        """Return plain values; infinity and not-a-number, which JSON lacks, as strings."""
        return {
            "figures": [plain(figure) for figure in self.figures],
            "rows": [plain(drift) for drift in self.drifts],
            "pictures": [plain(image) for image in self.pictures],
            "within": self.within,
            "about": dict(self.about),
            "origin": list(self.origin),
            "costs": [plain(cost) for cost in self.costs],
            "left_out": [plain(case) for case in self.left_out],
            "times": [plain(one) for one in self.times],
            "islands": {name: {one: dict(of) for one, of in rows.items()} for name, rows in self.islands.items()},
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> "Certificate":
        """Read the output of `to_json`.

        Raises:
            BundleError: The certificate is damaged.
        """
        try:
            about = dict(value["about"])
            about["bundle"] = dict(about["bundle"])
            if not all(isinstance(digest, str) for digest in about["bundle"].values()):
                raise TypeError("about: bundle")
            return cls(
                tuple(_read(TensorError, entry) for entry in value["figures"]),
                tuple(_read(RowError, entry) for entry in value["rows"]),
                tuple(_read(ImageSimilarity, entry) for entry in value["pictures"]),
                about,
                tuple(map(str, value["origin"])),
                tuple(_read(ShortcutCost, entry) for entry in value.get("costs", ())),  # absent in older certificates
                tuple(_read(SkippedCase, entry) for entry in value.get("left_out", ())),
                {str(name): _read_islands(rows) for name, rows in value.get("islands", {}).items()},
                tuple(_read(TimeGain, entry) for entry in value.get("times", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            problem, hint = "the certificate cannot be read", "ldmrt verify BUNDLE --against CHECKPOINT --store"
            raise BundleError("manifest", problem, found=f"{error!r:.200}", hint=hint) from None


def backend_row(backend: str, compute: str) -> str:
    """Name a backend in a certificate: with the precision that it computes in, where that is not fp32."""
    return backend if compute == "fp32" else f"{backend} {compute}"


Record = TypeVar("Record", TensorError, RowError, ImageSimilarity, ShortcutCost, SkippedCase, TimeGain)


def plain(record: "DataclassInstance") -> JsonObject:
    """Return a record's fields as JSON can hold them: infinity and not-a-number as strings."""
    values = asdict(record)
    return {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in values.items()}


def _read(kind: type[Record], value: JsonObject) -> Record:
    """Read a record from plain values; TypeError or ValueError where a value is not of its field's type."""
    numbers = {known.name for known in fields(kind) if known.type in (float, "float", float | None)}
    values: JsonObject = {k: float(v) if k in numbers and v is not None else v for k, v in value.items()}
    for known in fields(kind):
        if known.type in (str, int) and type(values.get(known.name)) is not known.type:
            raise TypeError(f"{kind.__name__}.{known.name}")
        if known.type is float and values.get(known.name) is None:
            raise TypeError(f"{kind.__name__}.{known.name}")
    return kind(**values)


def _read_islands(value: JsonObject) -> Islands:
    """Read the islands of a backend from plain values; TypeError or AttributeError where they are none."""
    read = {component: dict(modules.items()) for component, modules in value.items()}
    if not all(isinstance(why, str) for modules in read.values() for why in modules.values()):
        raise TypeError("islands")
    return read
