"""Upscale models with random weights, by spandrel's own classes, in the layouts in which they are published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldmrt.model.vision.upscale_model import import_spandrel

State = Mapping[str, Tensor]
SCALES = {"4x-old.pth": 4, "4x-new.pth": 4, "x2plus.pth": 2, "compact.pth": 4, "1x.safetensors": 1, "span.pth": 2}


def esrgan(scale: int, shuffle: int = 1, blocks: int = 2) -> nn.Module:
    """ESRGAN's network with few filters; with `shuffle` that of RealESRGAN_x2plus."""
    import_spandrel()
    from spandrel.architectures.ESRGAN import ESRGAN

    whole, inner = scale * shuffle, 3 * shuffle**2
    shuffled = shuffle if shuffle > 1 else None
    return filled(ESRGAN(in_nc=inner, out_nc=3, num_filters=8, num_blocks=blocks, scale=whole, shuffle_factor=shuffled))


def compact(scale: int = 4) -> nn.Module:
    """SRVGGNetCompact, the network of realesr-general-x4v3 and realesr-animevideov3."""
    import_spandrel()
    from spandrel.architectures.Compact import Compact

    return filled(Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=3, upscale=scale))


def span(scale: int = 2) -> nn.Module:
    """SPAN's network, which is neither of both."""
    import_spandrel()
    from spandrel.architectures.SPAN import SPAN

    model = filled(SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=scale))
    for weight in model.parameters():
        weight.data *= 0.4  # as three convolutions stand in the place of one
    return model


def filled(model: nn.Module) -> nn.Module:
    """Give weights of a size at which every layer shows in the output, most of which lies between 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        fan = weight[0].numel() if weight.ndim > 1 else 1
        weight.data = torch.randn(weight.shape, generator=generator) * (0.8 / fan**0.5 if weight.ndim > 1 else 0.1)
    last = [weight for weight in model.parameters() if weight.ndim == 1][-1]
    last.data += 0.5
    return model.eval()


def real_esrgan_name(name: str) -> str:
    """Rename a weight of an ESRGAN of scale 4 with two blocks as basicsr, and so RealESRGAN_x4plus, has it."""
    import re

    ends = {"model.0": "conv_first", "model.1.sub.2": "conv_body", "model.3": "conv_up1", "model.6": "conv_up2",
            "model.8": "conv_hr", "model.10": "conv_last"}  # fmt: skip
    block = re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(\w+)", name)
    if block:
        return "body.{}.rdb{}.conv{}.{}".format(*block.groups())
    module, _, kind = name.rpartition(".")
    return f"{ends[module]}.{kind}"


def write_all(folder: Path) -> None:
    """Write a file of each layout."""
    old = esrgan(4).state_dict()
    torch.save(old, folder / "4x-old.pth")
    new = {real_esrgan_name(name): weight for name, weight in old.items()}
    torch.save({"params_ema": new}, folder / "4x-new.pth")
    torch.save({"params_ema": esrgan(2, 2).state_dict()}, folder / "x2plus.pth")
    torch.save({"params": compact().state_dict()}, folder / "compact.pth")
    save_file(esrgan(1).state_dict(), folder / "1x.safetensors")
    torch.save(span().state_dict(), folder / "span.pth")


def by_spandrel(path: Path) -> Any:
    """Load a file by spandrel's own loader: the oracle."""
    return import_spandrel().ModelLoader().load_from_file(path)
