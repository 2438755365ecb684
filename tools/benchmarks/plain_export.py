"""Export diffusers' networks with `torch.onnx.export`, as torch's documentation shows it.

python -m ldmrt.tools.benchmarks.plain_export CHECKPOINT FOLDER
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
def plain_export(checkpoint: str, folder: Path, precision: str) -> None:
    """Write the networks of CHECKPOINT to FOLDER, one ONNX file each."""
    import torch
    from diffusers import DiffusionPipeline

    dtype = torch.float16 if precision == "fp16" else torch.float32
    pipeline = DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=dtype)
    for name, (module, inputs) in _networks(pipeline, dtype).items():
        dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
        (folder / name).mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            program = torch.onnx.export(module.eval(), inputs, dynamo=True, dynamic_shapes={"arrays": dynamic})
        assert program is not None
        program.save(folder / name / "model.onnx", external_data=True)
        click.echo(name)


def _networks(pipeline: Any, dtype: "torch.dtype") -> "dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]":
    """Return each network as a function of tensors, and inputs to trace it with."""
    import torch

    class Call(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, call: Callable[..., object]) -> None:
            super().__init__()
            self.module, self.call = module, call

        def forward(self, *arrays: torch.Tensor) -> object:
            return self.call(self.module, *arrays)

    unet, vae = pipeline.unet, pipeline.vae
    tokens = torch.randint(0, 500, (2, 77))
    latents, times = torch.randn(2, 4, 64, 64, dtype=dtype), torch.tensor([7.0, 501.0])
    words = torch.randn(2, 77, unet.config.cross_attention_dim, dtype=dtype)
    inputs: tuple[torch.Tensor, ...] = (latents, times, words)
    if unet.config.addition_embed_type == "text_time":
        pooled = torch.randn(2, pipeline.text_encoder_2.config.projection_dim, dtype=dtype)
        inputs += (pooled, torch.randn(2, 6, dtype=dtype))

    def denoise(
        module: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, words: torch.Tensor, *added: torch.Tensor
    ) -> torch.Tensor:
        conditioning = dict(zip(("text_embeds", "time_ids"), added, strict=True)) if added else None
        return module(x, t, words, added_cond_kwargs=conditioning, return_dict=False)[0]

    parts: dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = {}
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipeline, name, None) is not None:
            encode = Call(getattr(pipeline, name), lambda m, ids: m(ids, output_hidden_states=True, return_dict=False))
            parts[name] = (encode, (tokens,))
    parts["unet"] = (Call(unet, denoise), inputs)
    parts["vae_decoder"] = (Call(vae, lambda m, x: m.decode(x, return_dict=False)[0]), (latents,))
    image = torch.randn(2, 3, 512, 512, dtype=dtype)
    parts["vae_encoder"] = (Call(vae, lambda m, x: m.encode(x, return_dict=False)[0].parameters), (image,))
    return parts


if __name__ == "__main__":
    plain_export()
