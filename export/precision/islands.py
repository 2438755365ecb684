"""Islands: modules of a network of halves that compute in float32, because halves would overflow there.

Known ones come first. The others are found by measuring: what each module gives is measured in float32 while images
are drawn. Where it comes near the largest half, the smallest module around it whose own result keeps away from there
becomes an island; where there is none, the whole network stays float32. Those of errors: see `search.py`.
"""

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ldmrt.export.components.component import Component
from ldmrt.export.components.specs import dtype_of
from ldmrt.export.components.table import example, rows
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.export.parity.record import SIDE, RecordingEngine, asking, needed, request_of, wanted
from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.graphs import DECODER_PREVIEW
from ldmrt.runtime.bundle.recording import Case
from ldmrt.runtime.errors import LdmrtWarning
from ldmrt.runtime.parity.islands import outermost

from .casting import computing, door, modules_of

HALF = 65504.0  # the largest float16
LIMIT = HALF / 2  # another prompt or image may bring twice the largest value of these
PROMPTS = ("a red apple, noto style, blue background", "an astronaut riding a horse, 4k, highly detailed, (((HDR)))")
STEPS = 8  # rows of each image, over the whole schedule
FEW = 3  # where no range is asked for: the calls whose errors are measured are the first, the middle and the last

Islands = dict[str, dict[str, str]]  # component -> module -> why; the module "" is all of it


@dataclass(frozen=True)
class Measured:
    """A component in float32: the largest |value| of what each of its modules gave, and some calls."""

    part: Component
    ranges: Mapping[str, float]
    cases: Sequence[Case]


def known(checkpoint: Checkpoint) -> Islands:
    """Return the components that are known to overflow: those of `force_upcast`, which diffusers heeds in SDXL.

    (Attention of `upcast_attention` computes its scores in float32 by itself.)
    """
    vae = checkpoint.vae
    sized = getattr(checkpoint.denoiser.config, "addition_embed_type", None)
    if not (sized and vae is not None and vae.config.force_upcast):
        return {}
    return {name: {"": "force_upcast in the autoencoder's config"} for name in ("vae_decoder", "vae_encoder")}


def measure(
    checkpoint: Checkpoint,
    names: Collection[str],
    *,
    overflowing: bool = True,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, Measured]:
    """Draw two images in float32, whatever dtype the weights have, and call each component with random inputs.

    Where nothing can overflow, one image of a few steps has all calls that are kept. `tell` is given what is done next.
    """
    steps, prompts = (STEPS, PROMPTS) if overflowing else (FEW, PROMPTS[:1])
    every = {name: part.in_float32() for name, part in rows(checkpoint).items()}
    engines = {name: RecordingEngine(part, wanted(part, steps)) for name, part in every.items()}
    measured: dict[str, Measured] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", LdmrtWarning)  # of prompts that are too long
        ranges = {name: stack.enter_context(record_ranges(part.module)) for name, part in every.items()}
        pipeline = replace(torch_pipeline(checkpoint), engines=LazyEngines.of(engines))
        side = min(SIDE, pipeline.stage.size)
        for seed, prompt in enumerate(prompts):
            tell("encoding a prompt in float32")
            task = pipeline.prepare(
                request_of(asking(prompt, seed, side, steps, pipeline.stage), needed(every, checkpoint, side))
            )
            x = task.x
            for state in task.steps():
                tell(f"drew row {state.row + 1} of {state.rows} of an image in float32")
                x = state.x
            picture = pipeline.decode(x)
            if DECODER_PREVIEW in engines:
                pipeline.preview(x)
            if "vae_encoder" in engines:
                channels = int(every["vae_encoder"].inputs[0].shape[1])
                images = picture[..., :channels].transpose(0, 3, 1, 2)
                engines["vae_encoder"](sample=images.astype("float32") / 127.5 - 1)
        for name in names:
            tell(f"{name}: random inputs in float32")
            part = every[name]
            inputs = example(part, {"batch": 1, "height": side, "width": side})
            at_random = Case(name, "at random", inputs, part.engine()(**inputs))
            measured[name] = Measured(part, ranges[name], [*engines[name].cases, at_random])
    return measured


def smallest_safe_module(ranges: Mapping[str, float], limit: float = LIMIT) -> dict[str, str]:
    """Return, for each module whose output exceeds `limit`, the smallest module around it whose output does not."""
    islands: dict[str, str] = {}
    for name, largest in ranges.items():
        if largest <= limit:
            continue
        around = name
        while around and not ranges.get(around, HALF) <= limit:
            around = around.rpartition(".")[0]
        islands.setdefault(around, f"range: {name or 'its result'} reaches {largest:.4g} of a half's {HALF:.0f}")
    return outermost(islands)


def raise_islands(parts: Mapping[str, Component], islands: Islands) -> None:
    """Let the islands compute in float32: what they take is widened, what they give is narrowed."""
    for name, modules in islands.items():
        narrow = getattr(torch, dtype_of(parts[name].module))
        for path in modules:
            door(modules_of(parts[name].module)[path], torch.float32, narrow)


@contextlib.contextmanager
def record_ranges(module: nn.Module) -> Iterator[dict[str, float]]:
    """Let a network compute in float32 while the context lasts, and record each module's largest |value|.

    NaN counts as infinite.
    """
    ranges: dict[str, float] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, out: object) -> None:
            for one in _tensors(out):
                largest = float(one.abs().max().nan_to_num(nan=float("inf"))) if one.numel() else 0.0
                ranges[name] = max(ranges.get(name, 0.0), largest)

        return hook

    with computing(module, [("", torch.float32)]):
        hooks = [one.register_forward_hook(note(name)) for name, one in modules_of(module).items()]
        try:
            yield ranges
        finally:
            for hook in hooks:
                hook.remove()


def _tensors(out: object) -> Sequence[Tensor]:
    if isinstance(out, Tensor):
        return [out] if out.is_floating_point() else []
    values = out.values() if isinstance(out, Mapping) else out if isinstance(out, (list, tuple)) else ()
    return [tensor for one in values for tensor in _tensors(one)]
