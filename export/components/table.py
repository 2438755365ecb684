"""The table of what is exported. A new component is one function here.

Shapes are in symbols; `dims.DIMS` says what a symbol may be, and ONNX axes, example inputs, parity cases and engines'
profiles follow from it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ldmrt.model.checkpoint.checkpoint import Checkpoint, class_of, config_of
from ldmrt.model.checkpoint.folder import ONE_STATE, QWEN
from ldmrt.model.networks.ldm_bert import LDMBert
from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.model.networks.unet import UNet, UNetConfig
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder
from ldmrt.runtime.bundle.graphs import (
    DECODER,
    DECODER_FP32,
    DECODER_PREVIEW,
    TRANSFORMER,
    UNET,
)
from ldmrt.runtime.bundle.stages import CLASSES, KEPT, KL, LONG, PROMPT_MASK
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.conditioning.prompts import ATTENTION_MASK, gives_pooled
from ldmrt.runtime.tensors import TensorSpec, shape_of

from .component import Component
from .controls import CONTROLS, check_fit, steering
from .image_prompt import image_inputs, image_prompt
from .networks import _Decoder, _Encoder, _LDMBert, _TextEncoder, _UNet, _VQDecoder, one_state, transformer
from .safety_checker import safety_checker
from .skipped_layers import SkippingTransformer
from .specs import conditioning, dtype_of, image, latent, lengths, tokens_of, transformer_conditioning

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Tensors = tuple[Tensor, ...]


def components(checkpoint: Checkpoint) -> dict[str, Component]:
    """Return every component of a checkpoint by its name, in the order in which they run."""
    return {name: _for_numpy(row) for name, row in rows(checkpoint).items()}


def rows(checkpoint: Checkpoint) -> dict[str, Component]:
    """Return every component by its name; in bfloat16, inputs and outputs are bfloat16 too."""
    return {row.name: row for build in BUILDERS for row in build(checkpoint)}


def _for_numpy(row: Component) -> Component:
    """Let a component of bfloat16 take and return float32, cast by hooks: NumPy has no bfloat16."""
    narrow = {spec.name for spec in row.inputs if spec.dtype == "bfloat16"}

    def take(
        _: nn.Module, args: tuple[Tensor, ...], inputs: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        return args, {name: value.bfloat16() if name in narrow else value for name, value in inputs.items()}

    if row.precision != "bf16":
        return row
    row.module.register_forward_pre_hook(take, with_kwargs=True)
    row.module.register_forward_hook(lambda _, __, out: tuple(one.float() for one in out))
    return row.in_float32()


def _text_encoders(c: Checkpoint) -> Iterator[Component]:
    prompt = c.stage.prompt
    layered = prompt is not None and gives_pooled(prompt)
    for name, model in c.text_encoders.items():
        if isinstance(model, LDMBert):
            yield _ldm_bert(c, name, model)
            continue
        if class_of(model) in ONE_STATE:
            yield _one_state(c, name, model)
            continue
        config = model.config
        dtype, width, tokens = dtype_of(model), int(config.hidden_size), tokens_of(c, name)
        layers = int(config.num_hidden_layers)
        skips = 0 if layered else layers - 1  # SDXL takes a layer's state as it is
        reads = prompt is None or prompt.kind != LONG  # FLUX.1 reads none of CLIP's states
        projects = class_of(model) == "CLIPTextModelWithProjection"
        pooled = ("text_embeds", int(config.projection_dim)) if projects else ("pooler_output", width)
        states = ["last_hidden_state", *(f"hidden_states.{i}" for i in range(layers + 1) if reads)]
        states += [f"last_hidden_state.{skip}" for skip in range(1, skips + 1)]
        outputs = [TensorSpec(state, dtype, ("batch", tokens, width)) for state in states]
        names = ("input_ids", *([ATTENTION_MASK] if c.long_prompts else []))
        outputs.insert(0 if projects else 1, TensorSpec(pooled[0], dtype, ("batch", pooled[1])))
        yield Component(
            name,
            _TextEncoder(model, skips, reads),
            tuple(TensorSpec(each, "int64", ("batch", tokens)) for each in names),
            tuple(outputs),
            {**config.to_dict(), "architectures": [class_of(model)]},
            vocabulary=(int(config.vocab_size), _end(config)),
        )


def _ldm_bert(c: Checkpoint, name: str, model: LDMBert) -> Component:
    config, tokens = model.config, tokens_of(c, name)
    return Component(
        name,
        _LDMBert(model),
        (TensorSpec("input_ids", "int64", ("batch", tokens)),),
        (TensorSpec("last_hidden_state", dtype_of(model), ("batch", tokens, config.d_model)),),
        {**config.to_dict(), "architectures": [class_of(model)]},
        vocabulary=(config.vocab_size, config.pad_token_id),
    )


def _one_state(c: Checkpoint, name: str, model: "PreTrainedModel") -> Component:
    config, tokens, qwen = model.config, tokens_of(c, name), class_of(model) == QWEN
    pad = None if qwen or not c.stage.source("prompt_mask") else int(config.pad_token_id)
    state = f"hidden_states.{int(config.num_hidden_layers) - 1}" if qwen else "last_hidden_state"
    return Component(
        name,
        one_state(model, pad),
        (TensorSpec("input_ids", "int64", ("batch", tokens)),),
        (TensorSpec(state, dtype_of(model), ("batch", tokens, int(config.hidden_size))),),
        {**config.to_dict(), "architectures": [class_of(model)]},
        vocabulary=(int(config.vocab_size), int(np.atleast_1d(config.eos_token_id or 0)[0])),
        pad=pad,
    )


def _end(config: "PretrainedConfig") -> int:
    """Return the id that ends a text: old configs say 2, where the vocabulary ends with it."""
    eos = int(config.eos_token_id)
    return int(config.vocab_size) - 1 if eos == 2 else eos


def _unet(c: Checkpoint) -> Iterator[Component]:
    if not isinstance(c.denoiser, (UNet, PlainUNet)):
        return
    config, dtype = c.unet.config, dtype_of(c.unet)
    inputs = [latent(c, "sample", config.in_channels, dtype), TensorSpec("timestep", "float32", ("timesteps",))]
    inputs += conditioning(c, dtype)
    if isinstance(config, UNetConfig) and config.time_cond_proj_dim:
        inputs.append(TensorSpec("timestep_cond", dtype, ("batch", config.time_cond_proj_dim)))
    yield Component(
        UNET,
        _UNet(c.unet),
        (*inputs, *image_inputs(c, dtype), *steering(c, dtype)),
        (latent(c, "out_sample", config.out_channels, dtype),),
        config_of(c.unet),
        classes=config.num_class_embeds or 0,
    )


def _transformer(c: Checkpoint) -> Iterator[Component]:
    if isinstance(c.denoiser, (UNet, PlainUNet)):
        return
    dtype, plain = dtype_of(c.denoiser), transformer(c.denoiser, class_of(c.denoiser), c.stage.space.factor)
    skips = {"skip_layers": list(c.skip_layers)} if c.skip_layers else {}
    yield Component(
        TRANSFORMER,
        SkippingTransformer(c.denoiser, c.skip_layers) if skips else plain,
        (
            latent(c, "hidden_states", c.stage.input_channels, dtype),
            TensorSpec("timestep", "float32", ("timesteps",)),
            *transformer_conditioning(c, dtype),
        ),
        (latent(c, "out_hidden_states", c.stage.space.channels, dtype),),
        config_of(c.denoiser) | skips,
        c.stage.space.patch,
    )


def _vae_decoders(c: Checkpoint) -> Iterator[Component]:
    for name, vae in ((DECODER, c.vae), (DECODER_FP32, c.spare), (DECODER_PREVIEW, c.preview)):
        if vae is None:
            continue
        module = _VQDecoder(vae) if isinstance(vae, VQAutoencoder) else _Decoder(vae)
        dtype = dtype_of(module)
        yield Component(
            name,
            module,
            (latent(c, "latent_sample", c.stage.space.channels, dtype),),
            (image("sample", vae.config.out_channels, dtype),),
            config_of(vae),
        )


def _vae_encoder(c: Checkpoint) -> Iterator[Component]:
    if c.vae is None:
        return
    config, module = c.vae.config, _Encoder(c.vae)
    dtype, channels = dtype_of(module), c.stage.space.channels
    yield Component(
        "vae_encoder",
        module,
        (image("sample", config.in_channels, dtype),),
        (latent(c, "latent_parameters", 2 * channels if c.stage.space.codec == KL else channels, dtype),),
        config_of(c.vae),
    )


def _controls(c: Checkpoint) -> Iterator[Component]:
    names = set[str]()
    for part, model in c.controls.items():
        kind, dtype = CONTROLS[class_of(model)], dtype_of(model)
        name = part.removeprefix(kind.prefix)
        if name in names:
            raise LdmrtError("export", f"two controls are named {name!r}", expected="a name for each")
        names.add(name)
        component = Component(
            kind.prefix + name,
            kind.module(model),
            tuple(kind.inputs(c, model, dtype)),
            tuple(kind.outputs(c, model, dtype)),
            config_of(model),
        )
        check_fit(c, component.name, model, component.outputs)
        yield component


BUILDERS: tuple[Callable[[Checkpoint], Iterator[Component]], ...] = (
    _text_encoders,
    image_prompt,
    _unet,
    _transformer,
    _vae_decoders,
    _vae_encoder,
    _controls,
    safety_checker,
)


def example(component: Component, sizes: Mapping[str, int], seed: int = 0) -> dict[str, NDArray]:
    """Draw inputs of the right shape and range: unit noise, timesteps of the whole schedule, ids of the vocabulary."""
    rng, arrays = np.random.default_rng(seed), dict[str, NDArray]()
    for spec in component.inputs:
        shape = shape_of(spec, sizes)
        if spec.name == CLASSES:
            arrays[spec.name] = rng.integers(0, component.classes, shape)
        elif spec.name == ATTENTION_MASK:
            arrays[spec.name] = np.maximum(rng.integers(0, 2, shape), np.arange(shape[1]) == 0)  # the first is seen
        elif spec.dtype == "int64":
            entries, end = component.vocabulary
            arrays[spec.name] = rng.integers(0, entries, shape)
            arrays[spec.name][:, -1] = end
            if component.pad is not None:
                arrays[spec.name][arrays[spec.name] == component.pad] = end
                for ids, length in zip(arrays[spec.name], lengths(shape), strict=True):
                    ids[length - 1], ids[length:] = end, component.pad
        elif spec.name == PROMPT_MASK:
            tokens = np.arange(shape[1]) < np.array(lengths(shape))[:, None]
            arrays[spec.name] = tokens.astype(spec.dtype)
        elif spec.name == "timestep":
            arrays[spec.name] = np.linspace(0.37, 998.63, shape[0], dtype=np.float32)  # no half holds them
        elif spec.name == "guidance":
            arrays[spec.name] = np.linspace(1.7, 5.3, shape[0], dtype=np.float32)
        elif spec.name == KEPT:
            arrays[spec.name] = (1 - np.arange(shape[0]) % 2).astype(np.float32)
        elif spec.name == "time_ids":
            arrays[spec.name] = rng.integers(0, 1024, shape).astype(np.float32)
        else:
            arrays[spec.name] = rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    return arrays
