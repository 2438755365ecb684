"""`ldmrt export`: a checkpoint to a bundle."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click


def of_checkpoint(command: Any) -> Any:
    """The options that say how a checkpoint is read."""
    for option in (
        click.option("--prediction", type=click.Choice(["epsilon", "v_prediction"]),
                     help="What the model predicts, where the checkpoint does not say it."),
        click.option("--tokenizer", type=click.Path(path_type=Path),
                     help="A folder with CLIP's vocabulary, which a single file lacks."),
        click.option("--variant", help="Of the weights, such as fp16; the plain ones where left out."),
    ):  # fmt: skip
        command = option(command)
    return command


class Weighed(click.ParamType):
    """FILE or FILE:WEIGHT."""

    name = "file[:weight]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Path, float]:
        file, colon, weight = str(value).rpartition(":")
        try:
            return (Path(file), float(weight)) if colon else (Path(weight), 1.0)
        except ValueError:  # the colon belongs to the path
            return Path(value), 1.0


def named(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """NAME=FOLDER, several times."""
    if wrong := [value for value in values if not all(value.partition("="))]:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=FOLDER", ctx, param)
    return {value.partition("=")[0]: Path(value.partition("=")[2]) for value in values}


@click.command()
@click.argument("checkpoint")
@click.argument("bundle", type=click.Path(path_type=Path))
@of_checkpoint
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="What the networks compute in.",
)
@click.option("--components", "only", help="Only these, such as unet,vae_decoder; the others stay as they are.")
@click.option(
    "--controlnet",
    "controlnets",
    multiple=True,
    callback=named,
    metavar="NAME=FOLDER",
    help="A ControlNet to export too; the U-Net then takes its residuals.",
)
@click.option("--lora", "loras", type=Weighed(), multiple=True, help="A LoRA to merge into the weights.")
@click.option(
    "--embedding", "embeddings", type=click.Path(path_type=Path), multiple=True, help="A textual inversion to add."
)
def export(
    checkpoint: str, bundle: Path, variant: str | None, tokenizer: Path | None, prediction: str | None,
    precision: str, only: str | None, controlnets: dict[str, Path], loras: tuple[tuple[Path, float], ...],
    embeddings: tuple[Path, ...],
) -> None:  # fmt: skip
    """Turn CHECKPOINT into BUNDLE, a folder of ONNX files with a manifest. CHECKPOINT is a folder in diffusers' layout,
    a single .safetensors or .ckpt file, or a model of the Hugging Face hub, OWNER/NAME.

    Components that have not changed since the last export to BUNDLE are reused. BUNDLE changes only when all are done.

    Example: ldmrt export model/pretrained/emoji64 out/emoji64
    """
    import torch

    from ldmrt.export import export_bundle
    from ldmrt.model import load
    from ldmrt.model.checkpoint import load_controlnet
    from ldmrt.model.inversion import add_embedding, read_embedding
    from ldmrt.model.lora import merge, read_lora

    from .progress import console

    begin = time.perf_counter()
    dtype = torch.float16 if precision == "fp16" else torch.float32
    loaded = load(checkpoint, variant=variant, dtype=dtype, tokenizer=tokenizer, prediction_type=prediction)
    added = {f"controlnet_{name}": load_controlnet(folder, dtype=dtype) for name, folder in controlnets.items()}
    loaded = replace(loaded, controlnets={**loaded.controlnets, **added})
    merged = merge(loaded.networks, [(read_lora(path), weight) for path, weight in loras]) if loras else {}
    for embedding in map(read_embedding, embeddings):
        for part, encoder in loaded.text_encoders.items():
            name = part.replace("text_encoder", "tokenizer")
            loaded.tokenizers[name] = add_embedding(encoder, loaded.tokenizers[name], embedding, part)
        noted = {"token": embedding.token, "file": embedding.name, "sha256": embedding.sha256}
        merged["embeddings"] = [*merged.get("embeddings", []), noted]
    with console.status("exporting") as status:
        chosen = [name.strip() for name in only.split(",")] if only else []
        for done in export_bundle(loaded, bundle, only=chosen, merged=merged):
            seconds, begin = time.perf_counter() - begin, time.perf_counter()
            how = "reused: weights, config and versions are the same" if done.reused else f"exported in {seconds:.1f} s"
            console.print(f"{done.component}: {how}", highlight=False)
            status.update("exporting")
    click.echo(bundle)
