"""Checkpoints of Stable Diffusion 3.5's and FLUX.1's size with random weights, written with few of them in memory."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

SHARD = 2 * 10**9  # bytes of weights in one file, which are in memory at once

Config = Mapping[str, Any]

# The published configs, as far as they differ from the defaults of diffusers' and transformers' classes.
CLIP_L: Config = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "projection_dim": 768,
    "num_attention_heads": 12, "hidden_act": "quick_gelu", "eos_token_id": 49407, "bos_token_id": 49406,
}  # fmt: skip
CLIP_G: Config = {
    **CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1280,
    "num_attention_heads": 20, "hidden_act": "gelu",
}  # fmt: skip
T5_XXL: Config = {
    "vocab_size": 32128, "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
DECODER_LEVELS: Config = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 16, "sample_size": 1024,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


class Part(NamedTuple):
    """One network of a checkpoint: the library and class it is of, and its config."""

    library: str
    kind: str
    config: Config


class Shapes(NamedTuple):
    """A family: diffusers' pipeline, its networks by part, its tokenizers, and its scheduler's config."""

    pipeline: str
    parts: Mapping[str, Part]
    tokenizers: Mapping[str, str]
    scheduler: Config


FAMILIES: Mapping[str, Shapes] = {
    "sd3.5-medium": Shapes(
        "StableDiffusion3Pipeline",
        {
            "transformer": Part("diffusers", "SD3Transformer2DModel", {
                "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
                "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
                "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
            }),
            "vae": Part("diffusers", "AutoencoderKL", {
                **DECODER_LEVELS, "scaling_factor": 1.5305, "shift_factor": 0.0609,
            }),
            "text_encoder": Part("transformers", "CLIPTextModelWithProjection", CLIP_L),
            "text_encoder_2": Part("transformers", "CLIPTextModelWithProjection", CLIP_G),
            "text_encoder_3": Part("transformers", "T5EncoderModel", T5_XXL),
        },
        {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer", "tokenizer_3": "T5TokenizerFast"},
        {"shift": 3.0},
    ),
    "flux1-dev": Shapes(
        "FluxPipeline",
        {
            "transformer": Part("diffusers", "FluxTransformer2DModel", {
                "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
                "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
                "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
            }),
            "vae": Part("diffusers", "AutoencoderKL", {
                **DECODER_LEVELS, "scaling_factor": 0.3611, "shift_factor": 0.1159,
            }),
            "text_encoder": Part("transformers", "CLIPTextModel", CLIP_L),
            "text_encoder_2": Part("transformers", "T5EncoderModel", T5_XXL),
        },
        {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"},
        {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
         "max_image_seq_len": 4096},
    ),
}  # fmt: skip


LAYERS = ("num_layers", "num_single_layers", "num_hidden_layers")  # what configs call the number of layers


def write_transformer(
    name: str,
    folder: Path,
    dtype: "torch.dtype",
    clip_tokenizer: Mapping[str, bytes],
    say: Callable[[str], None],
    layers: int | None = None,
) -> None:
    """Write a checkpoint of a family in diffusers' layout; at most `SHARD` bytes of weights are in memory at once.

    Args:
        name: A key of `FAMILIES`.
        folder: Where it is written.
        dtype: Of the weights.
        clip_tokenizer: The files of CLIP's tokenizer, with their names.
        say: Called with the name of each part before it is written.
        layers: How many layers the transformers and text encoders have at most; None is those of the family.
    """
    from ldmrt.model.checkpoint.checkpoint import write_json

    shapes = FAMILIES[name]
    index: dict[str, Any] = {"_class_name": shapes.pipeline, "_diffusers_version": "0.35.0"}
    for part, (library, kind, config) in shapes.parts.items():
        say(part)
        network = _without_weights(library, kind, config if layers is None else _shortened(config, layers))
        (folder / part).mkdir(parents=True, exist_ok=True)
        network.save_config(folder / part) if library == "diffusers" else network.config.save_pretrained(folder / part)
        _write_weights(network, folder / part, dtype, "diffusion_pytorch_model" if library == "diffusers" else "model")
        index[part] = [library, kind]
    for part, kind in shapes.tokenizers.items():
        (folder / part).mkdir(exist_ok=True)
        for file, content in (clip_tokenizer if kind == "CLIPTokenizer" else _t5_tokenizer()).items():
            (folder / part / file).write_bytes(content)
        index[part] = ["transformers", kind]
    scheduler = "FlowMatchEulerDiscreteScheduler"
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": scheduler, **shapes.scheduler})
    write_json(folder / "model_index.json", {**index, "scheduler": ["diffusers", scheduler]})


def _shortened(config: Config, layers: int) -> Config:
    """Return a config of as many layers at most, each as wide as before."""
    fewer = {name: min(config[name], layers) for name in LAYERS if name in config}
    dual = "dual_attention_layers"
    return {**config, **fewer, **({dual: tuple(range(layers))[: len(config[dual])]} if dual in config else {})}


def _without_weights(library: str, kind: str, config: Config) -> Any:
    """Build a network of diffusers' or transformers' whose weights take no memory."""
    import importlib

    import torch

    with torch.device("meta"):
        module = getattr(importlib.import_module(library), kind)
        return module(**config) if library == "diffusers" else module(module.config_class(**config))


def _write_weights(network: Any, folder: Path, dtype: "torch.dtype", stem: str) -> None:
    """Write random weights, of a variance that keeps activations in range, in files of at most `SHARD` bytes."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    from ldmrt.model.checkpoint.checkpoint import write_json

    saved = network.state_dict()
    shapes = {name: tensor.shape for name, tensor in network.named_parameters()}
    shapes |= {name: buffer.shape for name, buffer in network.named_buffers() if name in saved}
    without = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    pattern = stem + "{suffix}.safetensors"
    split = split_torch_state_dict_into_shards(without, filename_pattern=pattern, max_shard_size=SHARD)
    for file, names in split.filename_to_tensors.items():
        save_file({name: _random(name, shapes[name]).to(dtype) for name in names}, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _random(name: str, shape: tuple[int, ...]) -> "torch.Tensor":
    """Return the values of a weight: ones for the scale of a norm, zeros for a bias, else normal by the fan-in.

    T5 divides no score by the root of a head's width: its queries are as much smaller (transformers' `_init_weights`).
    """
    import torch

    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    if name.endswith("SelfAttention.q.weight"):
        return torch.randn(shape) / math.sqrt(shape[1] * T5_XXL["d_kv"])
    return torch.randn(shape) / math.sqrt(math.prod(shape[1:]))


def _t5_tokenizer() -> dict[str, bytes]:
    """Make a tokenizer of T5's kind with a small vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz,."]
    model = models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], unk_id=2)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    config = {"tokenizer_class": "T5TokenizerFast", "model_max_length": 512, "eos_token": "</s>", "pad_token": "<pad>",
              "unk_token": "<unk>", "extra_ids": 0}  # fmt: skip
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}
