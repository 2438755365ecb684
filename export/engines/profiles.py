"""Turns the options for sizes and batches into the shapes that an engine takes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from ldmrt.export.dims import DIMS, Dim
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import Bucket, Range, Recipe
from ldmrt.runtime.bundle.engines.store import model_digests
from ldmrt.runtime.bundle.graphs import IMAGE_ENCODER, IMAGE_PROJECTION, SAFETY_CHECKER, STEP, most_rows
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import TensorSpec, shape_of, split_symbol

ENDS = ("min", "opt", "max")
SIZE = re.compile(r"(\d+)(?:-(\d+))?x(\d+)(?:-(\d+))?")
COUNT = re.compile(r"(\d+)(?:-(\d+))?")
GUIDANCE = ("on", "off", "any")  # how many rows the U-Net runs for an image: those of guidance, one, or either
FLAGS = ("decomposable attentions",)  # of every engine: head sizes without a fused kernel fail to build else


@dataclass(frozen=True)
class Wanted:
    """Describes what shall run: images of these widths and heights, so many at once, in so many steps at most."""

    sizes: tuple[tuple[Dim, Dim], ...]  # (width, height) each
    batches: tuple[Dim, ...]
    guidance: str = "on"
    steps: int = DIMS["steps"].opt  # most steps of any sampler in the fused step
    rows: int = 2  # of guidance, for each image

    @classmethod
    def read(cls, sizes: str | None, batch: str, guidance: str, own: int, steps: int = DIMS["steps"].opt) -> "Wanted":
        """Read options.

        Args:
            sizes: "512x512,768x512" or "512-1024x512-1024" in pixels, widths first; None for the model's own size.
            batch: "1-4" or "1,4" images.
            guidance: One of `GUIDANCE`.
            own: Width and height that the model was trained for, in pixels; a range is fastest there.
            steps: The most steps of a sampler that the fused step takes.

        Raises:
            LdmrtError: A size or a number cannot be read, or is out of range.
        """
        found = []
        for word in (sizes or f"{own}x{own}").split(","):
            if (match := SIZE.fullmatch(word.strip())) is None:
                expected = "WIDTHxHEIGHT, such as 512x512,768x512 or 512-1024x512-1024"
                raise LdmrtError("--sizes", "cannot read it", expected=expected, found=word)
            low_w, high_w, low_h, high_h = match.groups()
            found.append((_dim("width", low_w, high_w, own), _dim("height", low_h, high_h, own)))
        counts = []
        for word in batch.split(","):
            if (match := COUNT.fullmatch(word.strip())) is None:
                raise LdmrtError(
                    "--batch", "cannot read it", expected="a number of images, such as 1 or 1-4", found=word
                )
            low, high = match.groups()
            counts.append(_dim("batch", low, high, 1))
        most = _dim("steps", str(steps), None, steps).max
        return cls(tuple(dict.fromkeys(found)), tuple(dict.fromkeys(counts)), guidance, most)


def _dim(name: str, low: str, high: str | None, usual: int) -> Dim:
    least, most = int(low), int(high or low)
    if not 1 <= least <= most <= DIMS[name].max:
        option = "--sizes" if name in ("width", "height") else f"--{name}"
        expected, found = f"1 to {DIMS[name].max}, the least first", low if high is None else f"{low}-{high}"
        raise LdmrtError(option, f"invalid {name}", expected=expected, found=found)
    return Dim(least, min(max(usual, least), most), most)


def rows(component: str, batch: Dim, guidance: str, guided: int = 2) -> Dim:
    """Return how many rows a component runs at once for a number of images, with so many rows of guidance for each."""
    if component.startswith(("vae", "adapter", SAFETY_CHECKER)):
        return Dim(1, 1, 1)  # an image at a time: its scratch memory would grow with the batch
    if component.startswith("text_encoder"):  # equal prompts are encoded once
        return Dim(1, min(2, batch.max) if guidance == "off" else 2, batch.max * (1 if guidance == "off" else 2))
    if component.startswith((IMAGE_ENCODER, IMAGE_PROJECTION)):  # an image for each prompt, and none for guidance
        most = batch.max + (guidance != "off")
        return Dim(1, min(2, most), most)
    least = batch.min * (guided if guidance == "on" else 1)
    factor = 1 if guidance == "off" else guided
    return Dim(least, batch.opt * factor, batch.max * factor)


def sampling(steps: int) -> dict[str, Dim]:
    """Return the dimensions of a sampler that the fused step holds.

    It is fastest for the largest, which the runtime binds; of noise one draw is bound where a sampler takes none.
    """
    saved, most = DIMS["saved"], most_rows(steps)
    terms = Dim(*(getattr(saved, end) + 2 for end in ENDS))  # the prediction before them, noise after them
    return {"rows": Dim(1, most, most), "saved": saved, "terms": terms, "draws": Dim(1, 1, most)}


def profile(graph: str, inputs: Sequence[TensorSpec], wanted: Wanted) -> tuple[Bucket, ...]:
    """Return the shapes of a graph's inputs: a bucket for each size and batch that make a difference to it."""
    buckets: list[Bucket] = []
    for (width, height), batch in product(wanted.sizes, wanted.batches):
        if graph == STEP:  # of so many images, for which the U-Net runs so many rows
            dims = {
                "batch": batch,
                "calls": rows("unet", batch, wanted.guidance, wanted.rows),
                **sampling(wanted.steps),
            }
        else:
            dims = {"batch": rows(graph, batch, wanted.guidance, wanted.rows)}
        dims |= {"width": width, "height": height, "tokens": DIMS["tokens"]}
        for spec in inputs:
            _check(graph, spec, dims)
        bucket: Bucket = {
            spec.name: Range(*(shape_of(spec, {name: getattr(dim, end) for name, dim in dims.items()}) for end in ENDS))
            for spec in inputs
        }
        if bucket not in buckets:
            buckets.append(bucket)
    return tuple(buckets)


def _check(graph: str, spec: TensorSpec, dims: dict[str, Dim]) -> None:
    for dim in spec.shape:
        name, unit = split_symbol(dim) if isinstance(dim, str) else ("", 1)
        for end in ENDS if unit > 1 else ():
            pixels = getattr(dims[name], end)
            if pixels % unit or pixels < 2 * unit:
                expected = f"a multiple of {unit} from {2 * unit} on"
                raise LdmrtError(graph, f"invalid {name}", expected=expected, found=pixels)


def _check_sizes(bundle: Bundle, wanted: Wanted) -> None:
    """Refuse sizes that the network that denoises cannot take: of a transformer whole patches, up to its positions."""
    stage = bundle.stage
    for side in {getattr(dim, end) for size in wanted.sizes for dim in size for end in ENDS}:
        expected = ""
        if stage.space.patch > 1 and side % stage.space.unit:
            expected = f"multiples of {stage.space.unit}"
        elif stage.largest and side > stage.largest:
            expected = f"sides of at most {stage.largest}"
        if expected:
            raise LdmrtError(stage.network, "cannot take images of this size", expected=expected, found=side)


def recipes(
    bundle: Bundle, wanted: Wanted, *, backend: str, version: str, targets: Sequence[str], flags: Sequence[str] = (),
    graphs: Sequence[str] | None = None,
) -> list[Recipe]:  # fmt: skip
    """List what to build of a bundle: of its components in the order that they run, or of these of its `graphs`."""
    if not bundle.manifest:
        hint = "ldmrt export CHECKPOINT BUNDLE"
        raise LdmrtError("build", f"{bundle.path} has no manifest that says its shapes", hint=hint)
    _check_sizes(bundle, wanted)
    guided = bundle.stage.guide.rows_by_default
    wanted = replace(wanted, rows=guided) if guided > 1 else replace(wanted, guidance="off")
    made = []
    for name in bundle.components if graphs is None else graphs:
        graph, weights = model_digests(bundle, name)
        shapes = profile(name, bundle.specs(name)[0], wanted)
        made += [
            Recipe(name, graph, weights, bundle.precision(name), backend, version, target, shapes, (*FLAGS, *flags))
            for target in targets
        ]
    return made
