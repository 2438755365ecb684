"""Add an IP-Adapter to a checkpoint: its image encoder, its projection, and the layers of the U-Net."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ldmrt.model.checkpoint.checkpoint import Checkpoint, from_transformers, on_meta
from ldmrt.model.checkpoint.folder import part_of_folder
from ldmrt.model.config import check_depth
from ldmrt.model.library.clip_vision import CLIP_VISION, LAST, Embedding, States
from ldmrt.model.networks.controls.ip_adapter import ImagePrompt, Projection, attach, image_layers
from ldmrt.model.networks.unet import UNet
from ldmrt.model.weights.weights import Tensors, fill, match
from ldmrt.runtime.bundle.graphs import IMAGE_ENCODER, IMAGE_PROJECTION, UNET
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject, read_json

from .ip_adapter_files import WHERE, open_ip_adapter, projection_of

ENCODER_FOLDERS = ("image_encoder", "../models/image_encoder")  # beside a file, as its authors' repository has them


def with_ip_adapter(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    image_encoder: str | Path | None = None,
    dtype: Mapping[str, torch.dtype | None] | None = None,
) -> Checkpoint:
    """Add an IP-Adapter, by which a U-Net reads images beside prompts (Ye et al. 2023, arXiv:2308.06721).

    Args:
        checkpoint: The model, whose U-Net is changed.
        path: The adapter's own file, as its authors write it, or a folder that holds it alone.
        image_encoder: The folder of CLIP's image encoder; by default `image_encoder` beside the file, or in `models`
            beside its folder, whichever fits.
        dtype: The dtype of all weights by component, "" for all others; None leaves them as they are stored. All are
            float32 by default.

    Returns:
        The model with its adapter.

    Raises:
        LdmrtError: A file is missing, damaged or of another kind, or does not fit the model.
    """
    kinds = {"": torch.float32} if dtype is None else dtype
    unet = checkpoint.unet
    if not isinstance(unet, UNet) or checkpoint.stage.prompt is None:
        raise LdmrtError(WHERE, "an IP-Adapter needs a U-Net that reads prompts", expected="Stable Diffusion")
    file = open_ip_adapter(Path(path))
    projection, tensors = projection_of(file)
    matched = match(WHERE, projection, tensors)
    if projection.width != unet.config.cross_attention_dim:
        problem, expected = "does not fit this U-Net in cross_attention_dim", unet.config.cross_attention_dim
        raise LdmrtError(WHERE, problem, expected=expected, found=projection.width)
    with on_meta(WHERE):
        layers = image_layers(unet)
    layer_tensors = Tensors(file.layers, file.path)
    layers_matched = match(WHERE, layers, layer_tensors)
    encoder, config = _encoder(file.path, image_encoder, projection, dtype=kinds)
    fill(WHERE, projection, matched, tensors, kinds.get(IMAGE_PROJECTION, kinds[""]))
    fill(WHERE, layers, layers_matched, layer_tensors, kinds.get(UNET, kinds[""]))
    prompt = ImagePrompt(encoder, projection, attach(unet, layers), int(config["image_size"]), config)
    return replace(checkpoint, image_prompt=prompt)


def _encoder(
    file: Path, given: str | Path | None, projection: Projection, *, dtype: Mapping[str, torch.dtype | None]
) -> tuple[nn.Module, JsonObject]:
    """Load the image encoder of an adapter, and return it with its config.

    Args:
        file: The adapter's file.
        given: The encoder's folder, if one was named.
        projection: The adapter's projection, which tells what the encoder has to give.
        dtype: The dtype of its weights by component.
    """
    inner, layered = projection.inner, projection.layered
    folders = [Path(given)] if given is not None else [file.parent / name for name in ENCODER_FOLDERS]
    there = [folder for folder in folders if (folder / "config.json").is_file()]
    hint = "--image-encoder FOLDER, of a CLIPVisionModelWithProjection"
    if not there:
        raise LdmrtError(IMAGE_ENCODER, "no image encoder", expected=f"{folders[0]}/config.json", hint=hint)
    configs = [read_json(IMAGE_ENCODER, folder / "config.json") for folder in there]
    name = "hidden_size" if layered else "projection_dim"
    fitting = [(folder, config) for folder, config in zip(there, configs, strict=True) if config.get(name) == inner]
    if not fitting:
        problem, found = f"{name} of {there[0]} does not fit the IP-Adapter", configs[0].get(name)
        raise LdmrtError(IMAGE_ENCODER, problem, expected=inner, found=found, hint=hint)
    folder, config = fitting[0]
    kind = (config.get("architectures") or [CLIP_VISION])[0]
    if kind != CLIP_VISION:
        raise LdmrtError(IMAGE_ENCODER, "the image encoder is of another class", expected=CLIP_VISION, found=kind)
    tensors = part_of_folder(IMAGE_ENCODER, folder)
    check_depth(IMAGE_ENCODER, config, lambda: len(tensors.named))
    layers = int(config.get("num_hidden_layers", 12)) - layered
    with on_meta(IMAGE_ENCODER):
        built = {**config, "num_hidden_layers": layers}
        model = from_transformers(IMAGE_ENCODER, CLIP_VISION, "CLIPVisionConfig", built)
        module = States(model) if layered else Embedding(model)
    if layered:
        last = (f"vision_model.encoder.layers.{layers}.", *LAST)
        named = {key: tensor for key, tensor in tensors.named.items() if not key.startswith(last)}
        tensors = replace(tensors, named=named)
    fill(IMAGE_ENCODER, model, match(IMAGE_ENCODER, model, tensors), tensors, dtype.get(IMAGE_ENCODER, dtype[""]))
    return module.eval(), {**model.config.to_dict(), "architectures": [CLIP_VISION]}
