"""A checkpoint of full size with random weights, in diffusers' layout: to measure with, where no real one is at hand.

python -m ldmrt.tools.random_checkpoint sd15 build/sd15
"""

import json
from pathlib import Path
from typing import Any

import click

NAMES = {"sd15": "1.x", "sd15-inpainting": "1.x inpainting", "sd21": "2.x", "sdxl": "XL", "sdxl-refiner": "XL refiner"}
CAPTIONS = ["a photograph of an astronaut riding a horse", "a red apple on a wooden table", "two pears, oil painting"]


@click.command()
@click.argument("family", type=click.Choice(list(NAMES)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option("--seed", default=0, show_default=True)
def random_checkpoint(family: str, folder: Path, precision: str, seed: int) -> None:
    """Write a model of FAMILY's shapes into FOLDER. Its pictures are noise."""
    import torch

    from ldmrt.model.checkpoint import INDEX, NETWORKS, save_network, save_text_encoder, text_encoder, write_json
    from ldmrt.model.config import to_config
    from ldmrt.model.single_file import FAMILIES
    from ldmrt.model.tokenizer import train_tokenizer

    from .progress import console

    torch.manual_seed(seed)
    made = next(one for one in FAMILIES if one.name == NAMES[family])
    dtype = torch.float16 if precision == "fp16" else torch.float32
    parts: dict[str, Any] = {}
    for part, kind, config in (("unet", "UNet2DConditionModel", made.unet), ("vae", "AutoencoderKL", made.vae)):
        console.print(f"{part} of {family}", highlight=False)
        build, read = NETWORKS[kind]
        network = build(read.read(config))
        save_network(folder / part, network, to_config(kind, network.config), dtype)
        parts[part] = ["diffusers", kind]
    for part, text in made.texts.items():
        console.print(f"{part} of {family}", highlight=False)
        save_text_encoder(folder / part, text_encoder(text.config, text.kind, part), dtype)
        tokenizer = part.replace("text_encoder", "tokenizer")
        for name, content in train_tokenizer(CAPTIONS * 2, entries=600, length=77).items():
            (folder / tokenizer).mkdir(parents=True, exist_ok=True)
            (folder / tokenizer / name).write_bytes(content)
        parts |= {part: ["transformers", text.kind], tokenizer: ["transformers", "CLIPTokenizer"]}
    write_json(folder / "scheduler" / "scheduler_config.json", made.scheduler)
    parts["scheduler"] = ["diffusers", made.scheduler["_class_name"]]
    write_json(folder / INDEX, {**made.index, **parts})
    click.echo(json.dumps({"family": family, "precision": precision, "seed": seed, "folder": str(folder)}))


if __name__ == "__main__":
    random_checkpoint()
