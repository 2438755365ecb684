"""`ldmrt generate`: pictures from a bundle."""

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", nargs=-1, required=True)
@click.option("--negative", "negative_prompt", default="", help="What the picture should not be.")
@click.option("-n", "count", type=click.IntRange(min=1), default=1, show_default=True, help="Pictures a prompt.")
@click.option("--steps", default=20, show_default=True)
@click.option("--guidance", default=5.0, show_default=True, help="1 is none.")
@click.option("--guidance-rescale", default=0.0, help="Share of guidance's excess of contrast to take back, 0 to 1.")
@click.option("--seed", default=0, show_default=True, help="Of the first picture; the next ones count up.")
@click.option("--width", type=int, help="Pixels; the model's own size where left out.")
@click.option("--height", type=int)
@click.option(
    "--scheduler", help="Everyday name, such as ddim, euler, euler_a, dpmpp_2m; the bundle's own where left out."
)
@click.option("--eta", type=float, help="Share of fresh noise in each step, 0 to 1.")
@click.option("--backend", default="auto", show_default=True, help="auto, onnxruntime, onnxruntime-cuda.")
@click.option("--columns", type=click.IntRange(min=1), help="Of the grid; as square as it gets where left out.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("out.png"), show_default=True)
def generate(bundle: Path, prompts: tuple[str, ...], negative_prompt: str, count: int, steps: int, guidance: float,
             guidance_rescale: float, seed: int, width: int | None, height: int | None, scheduler: str | None,
             eta: float | None, backend: str, columns: int | None, out: Path) -> None:  # fmt: skip
    """Make pictures of PROMPTS with BUNDLE: OUT, or OUT as a grid and a numbered file for each.

    Every parameter stands in the PNG's text chunk "ldmrt".

    Example: ldmrt generate out/emoji64 "a red apple, noto style, blue background" -n 4 --seed 1 -o out/apple.png
    """
    from ldmrt.runtime import LdmrtError
    from ldmrt.runtime.pipeline import open_pipeline
    from ldmrt.runtime.request import Request
    from ldmrt.runtime.schedulers import everyday_name

    from .pictures import grid, save_png
    from .progress import console, watched

    if out.suffix.lower() != ".png" or out.is_dir():
        raise LdmrtError("generate", "impossible --out", expected="a file name that ends in .png", found=out)
    out.parent.mkdir(parents=True, exist_ok=True)
    request = Request(prompts, negative_prompt=negative_prompt, count=count, steps=steps, guidance=guidance,
                      guidance_rescale=guidance_rescale, seed=seed, width=width, height=height, scheduler=scheduler,
                      eta=eta)  # fmt: skip
    begin = time.perf_counter()
    pipeline = open_pipeline(bundle, backend)
    opened = time.perf_counter()
    rows, x = pipeline.plan(request).rows, None
    for state in watched(pipeline.steps(request), rows, lambda s: f"row {s.row + 1} of {s.rows}"):
        x = state.x
    sampled = time.perf_counter()
    assert x is not None
    images = pipeline.decode(x)
    decoded = time.perf_counter()

    shared: dict[str, Any] = {
        "ldmrt": version("ldmrt"),
        "bundle": bundle.name,
        "negative_prompt": negative_prompt,
        "steps": steps,
        "guidance": guidance,
        "guidance_rescale": guidance_rescale,
        "scheduler": scheduler or everyday_name(pipeline.scheduler),
        "eta": eta,
        "height": images.shape[1],
        "width": images.shape[2],
    }
    written = [out]
    if len(images) == 1:
        save_png(out, images[0], notes({**shared, "prompt": request.prompts[0], "seed": request.seeds[0]}))
    else:
        wide = columns or (count if len(prompts) > 1 else int(np.ceil(np.sqrt(len(images)))))
        save_png(out, grid(images, wide), notes({**shared, "prompts": request.prompts, "seeds": request.seeds}))
        for i, (image, prompt, own) in enumerate(zip(images, request.prompts, request.seeds, strict=True)):
            written.append(out.with_name(f"{out.stem}-{i:02d}.png"))
            save_png(written[-1], image, notes({**shared, "prompt": prompt, "seed": own}))
    pipeline.close()
    console.print(
        f"opened {opened - begin:.2f} s, {rows} rows {sampled - opened:.2f} s, decoded {decoded - sampled:.2f} s",
        highlight=False,
    )
    for path in written:
        click.echo(path)


def notes(parameters: dict[str, Any]) -> dict[str, str]:
    """The text chunk of a picture."""
    return {"ldmrt": json.dumps(parameters, ensure_ascii=False)}
