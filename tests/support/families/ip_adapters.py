"""Random IP-Adapters as their authors' files have them, with their image encoders, for small U-Nets of diffusers."""

from pathlib import Path
from typing import Any

SIZE, PATCH, HIDDEN = 30, 6, 24  # pixels of the encoder's images and patches, and the width of its states
KINDS = ("base", "plus", "full-face")


def save_image_encoder(folder: Path, *, projection: int = 20, hidden: int = HIDDEN) -> Path:
    """Write a CLIPVisionModelWithProjection of transformers."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from ..pipelines import randomise

    torch.manual_seed(6)
    config = CLIPVisionConfig(
        hidden_size=hidden, intermediate_size=32, projection_dim=projection, num_hidden_layers=3, num_attention_heads=2,
        image_size=SIZE, patch_size=PATCH, hidden_act="gelu",
    )  # fmt: skip
    randomise(CLIPVisionModelWithProjection(config), 7).save_pretrained(folder)
    return folder


def adapter_state(unet: Any, kind: str, *, inner: int) -> dict[str, dict[str, Any]]:
    """The two dicts of an adapter's file.

    Args:
        unet: diffusers' U-Net.
        kind: One of `KINDS`.
        inner: The width of what its projection reads.
    """
    import torch

    generator, width = torch.Generator().manual_seed(8), unet.config.cross_attention_dim

    def drawn(*shape: int) -> Any:
        return 0.5 * torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    def norm(size: int) -> dict[str, Any]:
        return {"weight": 1 + drawn(size), "bias": drawn(size)}

    def linear(outer: int, inner: int) -> dict[str, Any]:
        return {"weight": 2 * drawn(outer, inner), "bias": drawn(outer)}

    def named(**modules: dict[str, Any]) -> dict[str, Any]:
        return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.items()}

    layers, number = {}, 1
    for name, processor in unet.attn_processors.items():
        if name.endswith("attn2.processor"):
            del processor
            attention = unet.get_submodule(name.removesuffix(".processor"))
            for key in ("to_k_ip", "to_v_ip"):
                layers[f"{number}.{key}.weight"] = 2 * drawn(attention.to_k.out_features, width)
            number += 2
    if kind == "base":
        return {"image_proj": named(proj=linear(4 * width, inner), norm=norm(width)), "ip_adapter": layers}
    if kind == "full-face":
        parts = {"proj.0": linear(inner, inner), "proj.2": linear(width, inner), "proj.3": norm(width)}
        return {"image_proj": named(**parts), "ip_adapter": layers}
    hidden, tokens, heads = 32, 5, 2
    projection = {"latents": drawn(1, tokens, hidden)}
    projection |= named(proj_in=linear(hidden, inner), proj_out=linear(width, hidden), norm_out=norm(width))
    for layer in range(4):  # which diffusers' class has, whatever the file holds
        at = f"layers.{layer}"
        projection |= named(**{f"{at}.0.norm1": norm(hidden), f"{at}.0.norm2": norm(hidden), f"{at}.1.0": norm(hidden)})
        for key, shape in (("0.to_q", (64 * heads, hidden)), ("0.to_kv", (2 * 64 * heads, hidden)),
                           ("0.to_out", (hidden, 64 * heads)), ("1.1", (4 * hidden, hidden)),
                           ("1.3", (hidden, 4 * hidden))):  # fmt: skip
            projection[f"{at}.{key}.weight"] = 2 * drawn(*shape)
    return {"image_proj": projection, "ip_adapter": layers}


def save_ip_adapter(folder: Path, unet: Any, kind: str, *, suffix: str = ".safetensors", encoder: bool = True) -> Path:
    """Write an adapter's file, and its image encoder beside it; returns the file."""
    import torch
    from safetensors.torch import save_file

    state = adapter_state(unet, kind, inner=20 if kind == "base" else HIDDEN)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"ip-adapter-{kind}{suffix}"
    if suffix == ".safetensors":
        save_file({f"{half}.{key}": value for half, part in state.items() for key, value in part.items()}, path)
    else:
        torch.save(state, path)
    if encoder:
        save_image_encoder(folder / "image_encoder")
    return path
