"""A pipeline against what the reference computed: component by component, row by row, image by image."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.backends.wrappers.text_encoder_cache import CachedTextEncoder
from ldmrt.runtime.bundle.certificate import (
    ImageSimilarity,
    RowError,
    ShortcutCost,
    SkippedCase,
    TensorError,
    TimeGain,
)
from ldmrt.runtime.bundle.graphs import (
    BACK,
    DECODER,
    DECODER_FP32,
    DECODER_PREVIEW,
    DEEP,
    ENCODER,
    FEATURE,
    FRONT,
    SHALLOW,
    TILE,
)
from ldmrt.runtime.bundle.recording import Case, Recording, Trajectory
from ldmrt.runtime.errors import EngineNotFound, LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.pipeline.autoencoder.decode import Decoding, decode, unscaled
from ldmrt.runtime.pipeline.conditioning.prompts import tokens_of
from ldmrt.runtime.pipeline.denoising.denoise import DenoisingTask
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.field_names import from_short
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.runtime.samplers.workspace import Workspace
from ldmrt.runtime.tensors import Engine

from .metrics import image_similarity, psnr, tensor_error
from .tolerances import IMAGE, Tolerance

# The same float32 numbers through the same table; what an encoder adds to the start of inpainting counts too.
STEPPED = 1e-5
FACTOR = "scaling factor"
EVERY = 3  # the deep cache whose cost is stated


@dataclass(frozen=True)
class Comparison:
    """Hold what was measured of one component, or at last of the rows and the images."""

    what: str
    backend: str
    figures: tuple[TensorError, ...] = ()
    drifts: tuple[RowError, ...] = ()
    pictures: tuple[ImageSimilarity, ...] = ()
    costs: tuple[ShortcutCost, ...] = ()
    left_out: tuple[SkippedCase, ...] = ()
    times: tuple[TimeGain, ...] = ()
    images: NDArray[np.uint8] | None = field(default=None, repr=False)
    seconds: float = 0.0  # that measuring took

    @property
    def within(self) -> bool:
        """Whether all that was measured is within its tolerance."""
        measured: tuple[TensorError | RowError | ImageSimilarity, ...] = (*self.figures, *self.drifts, *self.pictures)
        return all(one.within for one in measured)

    @property
    def ran(self) -> bool:
        """Was a network measured? What is beside them, ids and numbers, must be the very same: its limit is 0."""
        return bool(self.drifts or self.pictures) or any(one.limit for one in self.figures)

    @property
    def summary(self) -> tuple[str, str]:
        """The worst of it, and its tolerance."""
        if self.times:
            return self.times[0].text, "none: a gain"
        if self.costs:
            return min(self.costs, key=lambda cost: cost.psnr).psnr_text, "none: a cost"
        if self.pictures:
            least = min(self.pictures, key=lambda one: one.psnr)
            return f"{least.psnr:.1f} dB" if least.psnr < math.inf else "identical", f">= {least.limit:g} dB"
        pairs = [(one.relative, one.limit) for one in self.figures]
        pairs += [(one.forced, one.forced_limit) for one in self.drifts]
        pairs += [(one.stepped, one.stepped_limit) for one in self.drifts]
        pairs += [(one.free, one.free_limit) for one in self.drifts]
        if not pairs:
            return "not measured", ""
        worst, limit = max(pairs, key=_share)
        return f"{worst:.1e}" if worst else "the same", f"<= {limit:.1g}" if limit else "the same"


def _share(pair: tuple[float, float]) -> float:
    """How much of its limit a value takes; what is not a number takes all."""
    value, limit = pair
    return math.inf if math.isnan(value) else value / limit if limit else value


def compare(
    pipeline: Pipeline, backend: str, reference: Recording, limits: Mapping[str, Tolerance]
) -> Iterator[Comparison]:
    """Compare every recorded call of every component of a pipeline, then the rows and the images.

    Cases that the backend has no engine for are skipped, and listed. Of a cascade the first stage is compared.
    """
    pipeline = replace(pipeline, later=())
    for name, tokenizer in pipeline.tokenizers.items():
        for case in reference.cases:
            if case.component == name:
                with warnings.catch_warnings():  # of texts that are too long
                    warnings.simplefilter("ignore", LdmrtWarning)
                    texts = [str(text) for text in case.inputs["texts"]]
                    ids = tokenizer(texts, tokens_of(tokenizer, pipeline.stage.prompt))
                measured = tensor_error(name, backend, case.name, "input_ids", ids, case.outputs["input_ids"], 0.0)
                yield Comparison(name, backend, (measured,))
    for name in pipeline.engines:
        same = DECODER if name == DECODER_FP32 else name  # the reference is of float32
        if cases := [one for one in reference.cases if one.component == same]:
            engine = pipeline.engines[name]
            if isinstance(engine, CachedTextEncoder):  # measure the encoder itself, not its cache
                engine = engine.engine
            checked = check_engine(engine, name, backend, cases, limits[name].limit)
            scaled = check_preview_scale(pipeline, backend, reference) if name == DECODER_PREVIEW else ()
            yield replace(checked, figures=(*checked.figures, *scaled))
    cut, calls = DEEP in pipeline.engines, [one for one in reference.cases if one.component == "unet"]
    if cut and calls:
        halves = pipeline.engines[DEEP], pipeline.engines[SHALLOW]
        yield Comparison(
            "unet, cut in two", backend, tuple(check_halves(*halves, backend, calls, limits["unet"].limit))
        )
    for name, same in ((DECODER, DECODER), (DECODER_FP32, DECODER), (ENCODER, ENCODER)):
        calls = [one for one in reference.cases if one.component == same]
        if name + TILE in pipeline.engines and calls:
            figures = tuple(check_parts(pipeline.engines, name, backend, calls, limits[name].limit))
            yield Comparison(f"{name}, in parts", backend, figures)
    space = pipeline.stage.space
    found, expected = np.array(space.scaling_factor), np.array(reference.scaling_factor)
    yield Comparison(FACTOR, backend, (tensor_error(FACTOR, backend, "config", "value", found, expected, 0.0),))
    trajectory = reference.trajectory
    if DECODER_FP32 in pipeline.engines:  # the reference's last latents: the only check of it without PyTorch
        spare = partial(decode, {DECODER: pipeline.engines[DECODER_FP32]}, space, trajectory.x[-1], Decoding())
        likeness = compare_images(f"picture by {DECODER_FP32}", backend, trajectory, IMAGE["fp32"].limit, spare)
        yield replace(likeness, images=None)
    try:
        drifts, x = compare_rows(pipeline, backend, trajectory, limits)
    except EngineNotFound as error:
        yield _without("rows", backend, [f"row {row}" for row in range(len(trajectory.said))], error)
        yield _without("picture", backend, _seeds(trajectory), error)
        return
    yield Comparison("rows", backend, drifts=tuple(drifts))
    drawn = compare_images("picture", backend, trajectory, limits["picture"].limit, partial(pipeline.decode, x))
    yield drawn
    if cut and drawn.images is not None:
        costs = tuple(cost_of_deep_cache(pipeline, backend, trajectory, drawn.images))
        yield Comparison(f"deep cache {EVERY}", backend, costs=costs)


def check_engine(engine: Engine, name: str, backend: str, cases: Sequence[Case], limit: float) -> Comparison:
    """Every output of every recorded call of a component."""
    figures, left_out = list[TensorError](), list[SkippedCase]()
    for case in cases:
        try:
            found = engine(**case.inputs)
        except EngineNotFound as error:
            left_out.append(SkippedCase(name, backend, case.name, first_line(error)))
            continue
        for output, expected in case.outputs.items():
            if output not in found:
                raise LdmrtError(name, f"no output {output}", expected=", ".join(case.outputs), found=", ".join(found))
            figures.append(tensor_error(name, backend, case.name, output, found[output], expected, limit))
    return Comparison(name, backend, tuple(figures), left_out=tuple(left_out))


def check_preview_scale(pipeline: Pipeline, backend: str, reference: Recording) -> Iterator[TensorError]:
    """Compare what the preview decoder is given of the trajectory's last latents with the recorded call, to the bit."""
    for case in reference.cases:
        if case.component == DECODER_PREVIEW and case.name == "picture" and pipeline.stage.preview is not None:
            ((name, expected),) = case.inputs.items()
            found = unscaled(pipeline.stage.preview, reference.trajectory.x[-1][:1])
            yield tensor_error(DECODER_PREVIEW, backend, case.name, name, found, expected, 0.0)


def check_halves(
    deep: Engine, shallow: Engine, backend: str, cases: Sequence[Case], limit: float
) -> Iterator[TensorError]:
    """The U-Net cut in two on its recorded calls: where the one is given the other's feature, both say what it says."""
    for case in cases:
        full = deep(**case.inputs)
        rest = shallow(**case.inputs, **{FEATURE: full[FEATURE]})
        for output, expected in case.outputs.items():
            for name, found in ((DEEP, full), (SHALLOW, rest)):
                yield tensor_error(name, backend, case.name, output, found[output], expected, limit)


def check_parts(
    engines: Mapping[str, Engine], name: str, backend: str, cases: Sequence[Case], limit: float
) -> Iterator[TensorError]:
    """Compare the parts of a decoder or an encoder with the whole one, on its recorded calls as one tile.

    The norms use the tile's own statistics first, and then the same statistics as inputs.
    """
    tile = engines[name + TILE]
    groups, norms = next(spec.shape[1:] for spec in tile.inputs if spec.name == "mean")
    for case in cases:
        ((output, expected),) = case.outputs.items()
        decodes = output == "sample"
        given = engines[name + FRONT](**case.inputs) if decodes else case.inputs
        area = (given["features"] if decodes else expected).shape[2:]
        nothing = np.zeros((len(expected), int(groups), int(norms)))
        told = {**given, "share": np.ones(area, np.float32)}
        own = tile(**told, mean=nothing, variance=nothing, own=np.ones(1))
        variance = own["moment_2"] - own["moment_1"] ** 2
        other = tile(**told, mean=own["moment_1"], variance=variance, own=np.zeros(1))
        for how, made in (("own", own), ("given", other)):
            found = made if decodes else engines[name + BACK](features=made["features"])
            yield tensor_error(
                name + TILE, backend, f"{case.name}, {how} norms", output, found[output], expected, limit
            )


def requested(trajectory: Trajectory, deep_cache: int | None = None) -> Request:
    """Return the request that a trajectory was recorded of, also with a deep cache."""
    return replace(Request(**from_short(trajectory.request_fields)), deep_cache=deep_cache)


def cost_of_deep_cache(
    pipeline: Pipeline, backend: str, trajectory: Trajectory, images: NDArray[np.uint8]
) -> Iterator[ShortcutCost]:
    """The trajectory with a deep cache, against its images (B, H, W, 3) by the same backend without."""
    drawn = pipeline.generate(requested(trajectory, deep_cache=EVERY)).pixels
    request = requested(trajectory)
    for prompt, seed, found, expected in zip(request.prompts, request.seeds, drawn, images, strict=True):
        yield ShortcutCost(backend, f"deep cache {EVERY}", prompt, seed, psnr(found, expected))


def compare_rows(
    pipeline: Pipeline, backend: str, trajectory: Trajectory, limits: Mapping[str, Tolerance]
) -> tuple[list[RowError], Latents]:
    """The rows, and the last latents of a run of its own.

    Guidance g multiplies what the network may be off by with at most g + |1 - g|, unless the network is given g as an
    input, and a row that skips layers adds twice its weight to that. A sampler fed with the same numbers rounds as
    float32 does. Errors of rows add up: a run of its own may be off by row + 1 times as much.
    """
    request = requested(trajectory)
    task = pipeline.prepare(request)
    guidance = float(trajectory.options.get("guidance", 1.0)) if pipeline.stage.guide.rows_by_default > 1 else 1.0
    skipped = 0.0 if request.skip_guidance_layers is None else request.skip_layer_guidance_scale
    limit = limits["rows"].limit * max(1.0, 2 * (guidance + skipped) - 1)
    rows = len(trajectory.said)
    stepped = _stepped(task, trajectory)
    free, x = [], task.x
    for state in task.steps():
        x = state.x
        free.append(_relative(x, trajectory.x[state.row + 1]) if state.row < rows else math.inf)
    free += [math.inf] * (rows - len(free))
    drifts = [
        RowError(
            backend, row, t, _relative(task.model(trajectory.x[row], t), trajectory.said[row]), stepped[row], free[row],
            limit, STEPPED, (row + 1) * limit,
        )
        for row, t in enumerate(trajectory.t.tolist())
    ]  # fmt: skip
    return drifts, x


def compare_images(
    what: str, backend: str, trajectory: Trajectory, limit: float, draw: Callable[[], NDArray[np.uint8]]
) -> Comparison:  # fmt: skip
    """The likeness of each image, without the lower byte of a depth, which may turn over; and the images."""
    try:
        images = draw()
    except EngineNotFound as error:
        return _without(what, backend, _seeds(trajectory), error)
    request = requested(trajectory)
    pairs = zip(request.prompts, request.seeds, images[..., :5], trajectory.images[..., :5], strict=True)
    return Comparison(
        what, backend, pictures=tuple(image_similarity(backend, *pair, limit) for pair in pairs), images=images
    )


def _without(what: str, backend: str, cases: Sequence[str], error: EngineNotFound) -> Comparison:
    return Comparison(
        what, backend, left_out=tuple(SkippedCase(what, backend, case, first_line(error)) for case in cases)
    )


def _seeds(trajectory: Trajectory) -> list[str]:
    return [f"seed {seed}" for seed in requested(trajectory).seeds]


def _stepped(task: DenoisingTask, trajectory: Trajectory) -> list[float]:
    """Return the error of the latents after each row where the reference's predictions are given: the sampler's alone.

    The first row's includes that of the latents before it. A plan with another number of rows is infinitely off.
    """
    if len(trajectory.said) != task.plan.rows:
        return [math.inf] * len(trajectory.said)
    run = Workspace(task.plan, task.x if task.init is None else task.plan.noised(task.init, task.x))
    off = [_relative(run.x, trajectory.x[0])]
    for row, said in enumerate(trajectory.said):
        x = run.move(row, said, task.noise(row) if task.plan.draws(row) else None)
        if task.blend is not None:
            x[...] = task.blend(row, x)
        off.append(_relative(x, trajectory.x[row + 1]) + abs(float(task.plan.t[row] - trajectory.t[row])))
    return [max(off[:2]), *off[2:]]


def _relative(found: Latents, expected: Latents) -> float:
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))
