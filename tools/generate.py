"""`ldmrt generate`: pictures from a bundle."""

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from .options import THREADS

if TYPE_CHECKING:
    from ldmrt.runtime import Pipeline, Request, Result

STRIP = 10  # at most as many pictures of the denoising side by side


class Control(click.ParamType):
    """NAME=PICTURE or NAME=PICTURE:SCALE."""

    name = "name=picture[:scale]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, tuple[str, float]]:
        name, equals, rest = value.partition("=")
        picture, colon, scale = rest.rpartition(":")
        try:
            number = float(scale) if colon else 1.0
        except ValueError:  # the colon belongs to the path
            picture, number = rest, 1.0
        if not equals or not name or not rest:
            self.fail(f"{value!r} is not NAME=PICTURE or NAME=PICTURE:SCALE, such as canny=edges.png:0.8", param, ctx)
        return name, ((picture or rest) if colon else rest, number)


class Interval(click.ParamType):
    """LOW,HIGH."""

    name = "low,high"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, float]:
        low, _, high = str(value).partition(",")
        try:
            return float(low), float(high)
        except ValueError:
            self.fail(f"{value!r} is not LOW,HIGH, such as 0.3,5", param, ctx)


PICTURE = click.Path(exists=True, dir_okay=False, path_type=Path)
SIZE = click.Tuple([int, int])


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", nargs=-1, required=True)
@click.option("--negative", "negative_prompt", help="What the picture should not be.")
@click.option("-n", "count", type=click.IntRange(min=1), default=1, show_default=True, help="Pictures a prompt.")
@click.option("--batch", type=click.IntRange(min=1), help="Pictures at once; all where left out.")
@click.option("--steps", default=20, show_default=True, help="Steps of the sampler; some run the U-Net twice in each.")
@click.option("--guidance", default=5.0, show_default=True, help="1 is none.")
@click.option(
    "--guidance-rescale",
    default=0.0,
    show_default=True,
    help="Share of guidance's excess of contrast to take back, 0 to 1.",
)
@click.option("--guidance-interval", type=Interval(), help="Guide only at noise levels sigma/alpha in between.")
@click.option("--deep-cache", type=int, metavar="N", help="Run the U-Net's deep layers only every N times: faster.")
@click.option("--seed", default=0, show_default=True, help="Of the first picture; the next ones count up.")
@click.option("--width", type=int, help="Pixels; the picture's or the model's own size where left out.")
@click.option("--height", type=int, help="Pixels; the same.")
@click.option("--scheduler", help="Everyday name, see `ldmrt samplers`; the bundle's own where left out.")
@click.option("--eta", type=float, help="Share of fresh noise in each step, 0 to 1.")
@click.option("--clip-skip", default=0, show_default=True, help="Last layers of the text encoder to leave out.")
@click.option("--image", type=PICTURE, help="Start from this picture.")
@click.option("--strength", default=0.8, show_default=True, help="How much of the way to noise the picture goes.")
@click.option("--mask", type=PICTURE, help="White where the picture shall change.")
@click.option("--control", "controls", type=Control(), multiple=True, help="Steer with a ControlNet or an adapter.")
@click.option("--prompt-2", help="SDXL: what the second text encoder reads.")
@click.option("--negative-2", "negative_prompt_2", help="SDXL: the same for the negative prompt.")
@click.option("--original-size", type=SIZE, help="SDXL: height and width to tell it; the picture's where left out.")
@click.option("--target-size", type=SIZE, help="SDXL: the same.")
@click.option("--crop", type=SIZE, default=(0, 0), help="SDXL: top and left of the crop to tell it.")
@click.option("--save-steps", is_flag=True, help="Also what the network sees in each row, and a strip of them.")
@click.option("--tile", type=int, help="Decode, and encode, in overlapping tiles of so many pixels: less memory.")
@click.option(
    "--tile-passes", default=3, show_default=True, help="Over all tiles; the last one draws. 1 takes each for itself."
)
@click.option("--low-memory", is_flag=True, help="One network in memory at a time; tiles above 768 pixels.")
@click.option(
    "--keep-optimized", is_flag=True, help="Keep ONNX Runtime's form of the networks: later starts are faster."
)
@click.option("--on-overflow", default="stop", show_default=True, help="Not finite? stop, or retry in float32.")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="onnxruntime, onnxruntime-cuda, tensorrt, "
    "tensorrt-rtx; auto takes engines that fit this machine's GPU, and ONNX Runtime where none does.",
)
@THREADS
@click.option("--columns", type=click.IntRange(min=1), help="Of the grid; as square as it gets where left out.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("out.png"), show_default=True,
              help="File of the picture, or of the grid of several.")  # fmt: skip
def generate(
    bundle: Path, prompts: tuple[str, ...], batch: int | None, save_steps: bool, tile: int | None, tile_passes: int,
    on_overflow: str, low_memory: bool, keep_optimized: bool, backend: str, threads: int, columns: int | None,
    out: Path,
    controls: tuple[tuple[str, Any], ...], **asked: Any,
) -> None:  # fmt: skip
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
    if save_steps and batch is not None:
        raise LdmrtError("generate", "--save-steps beside --batch", expected="one of them")
    out.parent.mkdir(parents=True, exist_ok=True)
    request = Request(prompts, controls=dict(controls), **asked)
    begin = time.perf_counter()
    pipeline = open_pipeline(
        bundle,
        backend,
        tile=tile,
        tile_passes=tile_passes,
        on_overflow=on_overflow,
        low_memory=low_memory,
        threads=threads,
        keep_optimized=keep_optimized,
    )
    opened = time.perf_counter()
    rows, parts = pipeline.plan(request).rows, [request] if batch is None else request.parts(batch)
    previews: list[NDArray[Any]] = []
    if len(parts) == 1:
        results = iter([in_rows(pipeline, request, rows, previews if save_steps else None)])
    else:
        results = watched(pipeline.draw(parts), len(parts), lambda one: f"seed {one.seeds[-1]}")

    shared = {"ldmrt": version("ldmrt"), "bundle": bundle.name} | noted(asked, controls)
    shared |= {"scheduler": request.scheduler or everyday_name(pipeline.scheduler)}
    written, images, took = [out], list[NDArray[np.uint8]](), dict[str, float]()
    for result in results:
        took, size = result.seconds, result.latents.shape[2:]
        if cells := pipeline.decoding.cells(pipeline.shape.factor, size):
            shared |= {"tile": cells * pipeline.shape.factor, "tile_passes": pipeline.decoding.passes}
        shared |= {"height": result.images.shape[1], "width": result.images.shape[2]}
        for image, seed in zip(result.images, result.seeds, strict=True):
            number = len(images)
            path = out if len(request.seeds) == 1 else out.with_name(f"{out.stem}-{number:02d}.png")
            save_png(path, image, notes({**shared, "prompt": request.prompts[number], "seed": seed}))
            images.append(image)
            written += [path] if path != out else []
    if len(images) > 1:
        wide = columns or (request.count if len(prompts) > 1 else int(np.ceil(np.sqrt(len(images)))))
        save_png(
            out, grid(np.stack(images), wide), notes({**shared, "prompts": request.prompts, "seeds": request.seeds})
        )
    if save_steps:
        written += save_rows(pipeline, previews, out)
    pipeline.close()
    told = f"{rows} rows {took['latents']:.2f} s, decoded {took['decode']:.2f} s"
    if len(parts) > 1:
        told = f"{len(images)} pictures of {rows} rows {time.perf_counter() - opened:.2f} s"
    console.print(f"opened {opened - begin:.2f} s, {told}", highlight=False)
    for path in written:
        click.echo(path)


def in_rows(pipeline: "Pipeline", request: "Request", rows: int, previews: list[NDArray[Any]] | None) -> "Result":
    """Draw, and show every row; `previews` are given what the network says in each."""
    from ldmrt.runtime import Result

    from .progress import watched

    begin, x = time.perf_counter(), None
    for state in watched(pipeline.steps(request), rows, lambda s: f"row {s.row + 1} of {s.rows}"):
        x = state.x
        if previews is not None:
            previews.append(state.x0)
    sampled = time.perf_counter()
    assert x is not None
    images = pipeline.decode(x)
    return Result(images, x, request.seeds, {"latents": sampled - begin, "decode": time.perf_counter() - sampled})


def save_rows(pipeline: "Pipeline", previews: list[NDArray[Any]], out: Path) -> list[Path]:
    """The network's word at each row, in a folder beside OUT, and a strip of some: a line a picture."""
    from .pictures import grid, save_png

    decoded = [pipeline.decode(x0) for x0 in previews]
    folder, strip = out.with_name(f"{out.stem}-steps"), out.with_name(f"{out.stem}-steps.png")
    folder.mkdir(exist_ok=True)
    written = []
    for row, images in enumerate(decoded):
        written.append(folder / f"{row:03d}.png")
        save_png(written[-1], grid(images, len(images)))
    shown = np.unique(np.linspace(0, len(decoded) - 1, STRIP).round().astype(int))
    pictures = [decoded[row][i] for i in range(len(decoded[0])) for row in shown]
    save_png(strip, grid(np.stack(pictures), len(shown)))
    return [*written, strip]


def noted(asked: dict[str, Any], controls: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """What stands in a picture's text chunk of what was asked: files by their name alone."""
    plain = {key: value.name if isinstance(value, Path) else value for key, value in asked.items()}
    plain.pop("seed"), plain.pop("count")
    return plain | {"controls": {name: [Path(picture).name, scale] for name, (picture, scale) in controls}}


def notes(parameters: dict[str, Any]) -> dict[str, str]:
    """The text chunk of a picture."""
    return {"ldmrt": json.dumps(parameters, ensure_ascii=False)}
