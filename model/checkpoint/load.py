"""Load a latent diffusion model from a folder in diffusers' layout, a single file or the hub."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import torch

from ldmrt.model.config import check_depth
from ldmrt.model.families.table import PIXEL_FAMILIES
from ldmrt.model.library import qwen3, t5
from ldmrt.model.library.deep_autoencoder import DeepAutoencoder
from ldmrt.model.networks.autoencoder import Autoencoder
from ldmrt.model.networks.controls.controlnet import ControlNet
from ldmrt.model.networks.controls.t2i_adapter import Adapter
from ldmrt.model.networks.tiny_autoencoder import TinyAutoencoder
from ldmrt.model.networks.unet import UNet
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder
from ldmrt.model.weights.weights import Tensors, fill, match
from ldmrt.runtime.bundle.graphs import DECODER_PREVIEW, DENOISERS, denoiser_of
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.hub import is_hub_name
from ldmrt.runtime.files.reading import JsonObject, read_json
from ldmrt.runtime.files.recognise import ADAPTER, BUNDLE, CHECKPOINT, CONTROLNET, LORA, NO_CHECKPOINTS, refuse_other
from ldmrt.runtime.samplers.config import Config
from ldmrt.runtime.samplers.settings import with_settings

from . import hub, single_file
from .checkpoint import Checkpoint, Denoiser, build, class_of, is_text_encoder, on_meta
from .fit import check_fit, check_preview
from .folder import INDEX, T5_PARTS, Source, part_of_folder, read_folder
from .outdated import current_scheduler, current_size
from .single_part import controlnet_source, with_part

Network = TypeVar("Network", UNet, Autoencoder, VQAutoencoder, TinyAutoencoder, ControlNet, Adapter)
Dtype = torch.dtype | Mapping[str, torch.dtype | None] | None


def load(
    source: str | Path,
    *,
    variant: str | None = None,
    dtype: Dtype = torch.float32,
    tokenizer: str | Path | None = None,
    prediction_type: str | None = None,
    parts: Mapping[str, Path] | None = None,
    scheduler: Config | None = None,
    settings: Config | None = None,
    without_t5: bool = False,
    max_sequence_length: int | None = None,
    skip_layers: Sequence[int] = (),
) -> Checkpoint:
    """Load a diffusion model: latent diffusion (Rombach et al. 2022, arXiv:2112.10752) of all its tasks, or DDPM.

    Configs, and the names and shapes of all weights, are checked before the first weight is read.

    Args:
        source: A folder in diffusers' layout, a single .safetensors or .ckpt file, or a model of the hub, "owner/name".
        variant: The variant of the weights, such as "fp16"; by default the plain one, or the only one.
        dtype: The dtype of all weights, or one for each network's name and "" for all others; None leaves weights as
            they are stored.
        tokenizer: A folder with CLIP's vocabulary, which a single file does not hold; for Stable Diffusion 3 and FLUX.1
            a checkpoint's folder, with T5's too.
        prediction_type: "epsilon", "v_prediction" or "sample", for models that do not state it.
        parts: Folders or files that take the place of the checkpoint's own "vae", "transformer", "text_encoder" and so
            on.
        scheduler: A scheduler's config in the place of the checkpoint's own.
        settings: Keys of the scheduler's config with other values.
        without_t5: Leaves T5 out of a Stable Diffusion 3: its files are neither fetched nor read.
        max_sequence_length: How many tokens of a prompt T5, Gemma or Qwen3 reads, 2 to 512; by default as many as in
            diffusers' pipelines: 256 for Stable Diffusion 3, 512 for FLUX.1 and Z-Image, 300 for PixArt-Sigma and Sana,
            120 for PixArt-Alpha.
        skip_layers: Stable Diffusion 3: the blocks of the transformer that a row of guidance may skip.

    Returns:
        The networks in eval mode on the CPU, and everything else that a bundle is exported from.

    Raises:
        LdmrtError: The source is missing, damaged, of an unsupported architecture, or its parts do not fit together.
    """
    path, left_out = Path(source), T5_PARTS if without_t5 else ()
    refuse_other("checkpoint", path, CHECKPOINT, *(() if path.is_dir() else NO_CHECKPOINTS))
    if path.exists() and not path.is_dir():
        if variant is not None:
            raise LdmrtError("checkpoint", "a single file has no variants", found=variant)
        description = single_file.read_file(path, tokenizer, prediction_type, parts or (), left_out)
    else:
        if tokenizer is not None:
            raise LdmrtError("tokenizer", "is only for a single file; a folder has its own", found=source)
        if path.suffix in single_file.SUFFIXES and not path.exists():
            raise LdmrtError("checkpoint", f"no file {path}")
        if not path.exists() and is_hub_name(str(source)):
            path = hub.download(str(source), variant, left_out, parts or ())
        description = read_folder(path, variant, parts or (), left_out)
        if prediction_type is not None:
            stated = {**description.scheduler, "prediction_type": prediction_type}
            description = replace(description, scheduler=stated)
    for part, place in (parts or {}).items():
        description = with_part(description, part, Path(place), variant)
    config = current_scheduler(description) if scheduler is None else dict(scheduler)
    description = replace(description, scheduler=with_settings(config, settings or {}))
    return _assemble(description, dtype, max_sequence_length, tuple(sorted({*skip_layers})))


def load_first_stage(folder: Path, *, dtype: torch.dtype | None = torch.float32) -> Autoencoder | VQAutoencoder:
    """Load the autoencoder in FOLDER/vae to train with, in eval mode; None leaves its weights in the file's dtype.

    Raises:
        LdmrtError: It is a tiny one, or cannot be read.
    """
    refuse_other("autoencoder", folder, CHECKPOINT, BUNDLE, LORA)
    place = folder / "vae"
    config = read_json("vae", place / "config.json")
    if (kind := config.get("_class_name")) == "AutoencoderTiny":
        expected = "AutoencoderKL or VQModel"
        raise LdmrtError("vae", "a tiny autoencoder cannot be trained with", expected=expected, found=kind)
    tensors = part_of_folder("vae", place, None)
    if kind == "VQModel":
        return _build_and_fill("vae", VQAutoencoder, config, tensors, dtype)
    return _build_and_fill("vae", Autoencoder, config, tensors, dtype)


def load_autoencoder(folder: Path, *, dtype: torch.dtype | None = torch.float32) -> Autoencoder:
    """Load the autoencoder in FOLDER/vae as `load_first_stage` does, and refuse one with a codebook.

    Raises:
        LdmrtError: It has a codebook, or cannot be read.
    """
    vae = load_first_stage(folder, dtype=dtype)
    if isinstance(vae, VQAutoencoder):
        hint = "ldmrt train autoencoder --kind kl"
        problem = f"{folder / 'vae'} has a codebook"
        raise LdmrtError("vae", problem, expected="AutoencoderKL", found="VQModel", hint=hint)
    return vae


def load_controlnet(
    folder: str | Path, *, variant: str | None = None, dtype: torch.dtype | None = torch.float32
) -> ControlNet:
    """Load a ControlNet (Zhang et al. 2023, arXiv:2302.05543).

    Args:
        folder: A folder in diffusers' layout, or a file with diffusers' names or the original ones.
        variant: The variant of the weights, such as "fp16"; by default the plain one, or the only one.
        dtype: The dtype of all weights; None leaves them as they are stored.

    Returns:
        The network in eval mode on the CPU.

    Raises:
        LdmrtError: The weights or the config are missing, damaged or unsupported, or of another kind of control.
    """
    refuse_other("controlnet", Path(folder), CONTROLNET, BUNDLE, ADAPTER, LORA)
    if Path(folder).exists() and not Path(folder).is_dir():
        config, tensors = controlnet_source(Path(folder))
        return _build_and_fill("controlnet", ControlNet, config, tensors, dtype)
    return _load_network("controlnet", ControlNet, Path(folder), variant, dtype)


def with_preview_decoder(
    checkpoint: Checkpoint, folder: str | Path, *, dtype: torch.dtype | None = torch.float32
) -> Checkpoint:
    """Add a tiny autoencoder, whose decoder previews what rows predict (Bohan 2023, TAESD).

    Args:
        checkpoint: The model, which is not changed.
        folder: A folder in diffusers' layout, with the config.json of an AutoencoderTiny, or a folder `vae` like that.
        dtype: The dtype of all its weights; None leaves them as they are stored.

    Returns:
        The model with its preview decoder.

    Raises:
        LdmrtError: The folder holds something else, is damaged, or decodes other latents than the model's.
    """
    place = Path(folder)
    refuse_other(DECODER_PREVIEW, place, "tiny autoencoder", BUNDLE, CONTROLNET, ADAPTER, LORA)
    if place.exists() and not place.is_dir():
        expected = "a folder in diffusers' layout, with its config.json"
        raise LdmrtError(DECODER_PREVIEW, f"cannot read {place}", expected=expected, found="a file")
    place = place if (place / "config.json").exists() else place / "vae"
    config = read_json(DECODER_PREVIEW, place / "config.json")
    if (kind := config.get("_class_name")) != "AutoencoderTiny":
        raise LdmrtError(DECODER_PREVIEW, f"unsupported {kind} in config.json", expected="AutoencoderTiny")
    try:
        tensors = part_of_folder(DECODER_PREVIEW, place)
        tiny = _build_and_fill(DECODER_PREVIEW, TinyAutoencoder, config, tensors, dtype)
    except LdmrtError as error:
        raise error.about(DECODER_PREVIEW) from None
    found = replace(checkpoint, preview=tiny)
    check_preview(found)
    return found


def load_adapter(
    folder: str | Path, *, variant: str | None = None, dtype: torch.dtype | None = torch.float32
) -> Adapter:
    """Load a T2I-Adapter (Mou et al. 2023, arXiv:2302.08453).

    Args:
        folder: A folder in diffusers' layout.
        variant: The variant of the weights, such as "fp16"; by default the plain one, or the only one.
        dtype: The dtype of all weights; None leaves them as they are stored.

    Returns:
        The network in eval mode on the CPU.

    Raises:
        LdmrtError: The weights or the config are missing, damaged or unsupported.
    """
    refuse_other("adapter", Path(folder), ADAPTER, BUNDLE, CHECKPOINT, CONTROLNET, LORA)
    if Path(folder).is_file():
        expected = "a folder in diffusers' layout, with its config.json"
        raise LdmrtError("adapter", f"cannot read {folder}", expected=expected, found="a file")
    return _load_network("adapter", Adapter, Path(folder), variant, dtype)


def _load_network(
    part: str,
    kind: type[Network],
    folder: Path,
    variant: str | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> Network:
    """Load one network from a folder with its config.json."""
    config = read_json(part, folder / "config.json")
    return _build_and_fill(part, kind, config, part_of_folder(part, folder, variant), dtype)


def _build_and_fill(
    part: str, kind: type[Network], config: JsonObject, tensors: Tensors, dtype: torch.dtype | None
) -> Network:
    """Build one network and put its weights into it."""
    check_depth(part, config, lambda: len(tensors.named))
    with on_meta(part):
        network = kind.from_config(config)
    return fill(part, network, match(part, network, tensors), tensors, dtype)


def _assemble(source: Source, dtype: Dtype, t5_tokens: int | None, skip_layers: tuple[int, ...]) -> Checkpoint:
    """Build and check everything, then read the weights."""
    pixels = source.index.get("_class_name") in PIXEL_FAMILIES  # which have no autoencoder
    denoiser = denoiser_of(source.networks)
    for part in (denoiser, "vae"):
        if part not in source.networks and not (part == "vae" and pixels):
            names = part if part == "vae" else " or ".join(DENOISERS)
            raise LdmrtError(part, f"{INDEX} names no {names}", expected="a part of every checkpoint")
    for part, (_, config) in source.networks.items():
        check_depth(part, config, lambda part=part: len(source.tensors(part).named))  # type: ignore[misc]
    networks = {part: build(part, kind, config) for part, (kind, config) in source.networks.items()}
    network, vae = networks[denoiser], networks.get("vae")
    assert isinstance(vae, (Autoencoder, VQAutoencoder, TinyAutoencoder, DeepAutoencoder, type(None)))
    encoders = {part: network for part, network in networks.items() if is_text_encoder(network)}
    controls = {part: network for part, network in networks.items() if isinstance(network, (ControlNet, Adapter))}
    if isinstance(network, UNet):
        network.config = current_size(network.config, source)
    checkpoint = Checkpoint(
        cast(Denoiser, network), vae, encoders, source.tokenizers, source.scheduler, source.index, controls,
        noisers=source.noisers, folders=source.folders, t5_tokens=t5_tokens,
        skip_layers=skip_layers,
    )  # fmt: skip
    check_fit(checkpoint)
    tensors = {part: source.tensors(part) for part in networks}
    tensors |= {part: t5.tied(tensors[part]) for part, network in networks.items() if class_of(network) == t5.T5}
    tensors |= {part: qwen3.without_head(tensors[part]) for part, n in networks.items() if class_of(n) == qwen3.QWEN}
    matched = {part: match(part, network, tensors[part]) for part, network in networks.items()}
    for part, network in networks.items():
        kind = dtype.get(part, dtype[""]) if isinstance(dtype, Mapping) else dtype
        fill(part, network, matched.pop(part), tensors.pop(part), kind)
    return checkpoint
