"""Write a checkpoint of full size with random weights, in diffusers' layout, for measurements.

python -m ldmrt.tools.benchmarks.checkpoints.random_checkpoint sd15 build/sd15
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .random_transformer import FAMILIES as TRANSFORMERS
from .random_transformer import write_transformer

if TYPE_CHECKING:
    from ldmrt.model.checkpoint.families import Family

NAMES = {"sd15": "1.x", "sd15-inpainting": "1.x inpainting", "sd21": "2.x", "sdxl": "XL", "sdxl-refiner": "XL refiner"}
CAPTIONS = ["a photograph of an astronaut riding a horse", "a red apple on a wooden table", "two pears, oil painting"]


def networks(name: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the networks of a family: part, class in diffusers or transformers, module."""
    from ldmrt.model.checkpoint.checkpoint import NETWORKS, text_encoder

    family = family_of(name)
    for part, kind, config in (("unet", "UNet2DConditionModel", family.unet), ("vae", "AutoencoderKL", family.vae)):
        yield part, kind, NETWORKS[kind].from_config(config)
    for part, text in family.texts.items():
        yield part, text.kind, text_encoder(text.config, text.kind, part)


def family_of(name: str) -> "Family":
    """Return a family by its name on this command line."""
    from ldmrt.model.checkpoint.families import FAMILIES

    return next(family for family in FAMILIES if family.name == NAMES[name])


def tokenizer_files() -> dict[str, bytes]:
    """Make a tokenizer with a small vocabulary, for texts of full length."""
    from ldmrt.model.training.tasks.tokenizer import train_tokenizer

    return train_tokenizer(CAPTIONS * 2, entries=600, length=77)


@click.command()
@click.argument("family", type=click.Choice([*NAMES, *TRANSFORMERS]))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--layers", type=click.IntRange(1), help="At most so many layers, in full width; transformers only.")
def random_checkpoint(family: str, folder: Path, precision: str, seed: int, layers: int | None) -> None:
    """Write a model of FAMILY's shapes into FOLDER. Its images are noise."""
    import torch

    from ldmrt.model.checkpoint.checkpoint import NETWORKS, save_network, save_text_encoder, write_json
    from ldmrt.model.checkpoint.folder import INDEX
    from ldmrt.model.config import to_config
    from ldmrt.tools.console.progress import console

    torch.manual_seed(seed)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    if family in TRANSFORMERS:
        say = partial(console.print, highlight=False)
        write_transformer(family, folder, dtype, tokenizer_files(), lambda part: say(f"{part} of {family}"), layers)
        return
    if layers is not None:
        raise click.UsageError(f"--layers: {family} is no transformer; expected: one of {', '.join(TRANSFORMERS)}")
    shapes = family_of(family)
    parts: dict[str, list[str]] = {}
    for part, kind, network in networks(family):
        console.print(f"{part} of {family}", highlight=False)
        if kind in NETWORKS:
            save_network(folder / part, network, to_config(kind, network.config), dtype)
            parts[part] = ["diffusers", kind]
            continue
        save_text_encoder(folder / part, network, dtype)
        tokenizer = part.replace("text_encoder", "tokenizer")
        for name, content in tokenizer_files().items():
            (folder / tokenizer).mkdir(parents=True, exist_ok=True)
            (folder / tokenizer / name).write_bytes(content)
        parts |= {part: ["transformers", kind], tokenizer: ["transformers", "CLIPTokenizer"]}
    write_json(folder / "scheduler" / "scheduler_config.json", shapes.scheduler)
    parts["scheduler"] = ["diffusers", shapes.scheduler["_class_name"]]
    write_json(folder / INDEX, {**shapes.index, **parts})


if __name__ == "__main__":
    random_checkpoint()
