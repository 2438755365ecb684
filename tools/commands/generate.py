"""`ldmrt generate`: images from a bundle."""

import json
import time
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.checkpoint import SCHEDULER as SCHEDULER_OPTIONS
from ldmrt.tools.options.common import THREADS, Choice
from ldmrt.tools.options.images import collected, one_or_all
from ldmrt.tools.options.request import request_of
from ldmrt.tools.options.types import IMAGE, SIZE, Batch, Control, Interval, Text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ldmrt.runtime.pipeline.call import ImagePipeline, Result
    from ldmrt.runtime.pipeline.request.request import Request

GRID = 1024  # at most as many images in the grid
STRIP = 10  # at most as many images of the denoising side by side


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", nargs=-1, required=True, type=Text())
@click.option("--negative", "negative_prompt", type=Text(), help="What the image should not be.")
@click.option("-n", "count", type=click.IntRange(min=1), default=1, show_default=True, help="Images of each prompt.")
@click.option(
    "--batch",
    type=Batch(),
    default="auto",
    show_default=True,
    help="Images at once; auto: what engines were built for, else what fits in memory, at most 16 images of 512x512.",
)
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
@click.option("--seed", default=0, show_default=True, help="Of the first image; the next ones count up.")
@click.option("--width", type=int, help="Pixels; the image's or the model's own size by default.")
@click.option("--height", type=int, help="Pixels; the same.")
@click.option("--scheduler", help="Everyday name, see `ldmrt samplers`; the bundle's own by default.")
@SCHEDULER_OPTIONS[0]
@SCHEDULER_OPTIONS[1]
@click.option("--eta", type=float, help="Share of fresh noise in each step, 0 to 1.")
@click.option("--clip-skip", default=0, show_default=True, help="Last layers of the text encoder to leave out.")
@click.option("--negative-clip-skip", default=0, show_default=True, help="The same for the negative prompt.")
@click.option("--image", type=IMAGE, multiple=True, help="Start from this image; once for all prompts, or for each.")
@click.option("--strength", default=0.8, show_default=True, help="How much of the way to noise the image goes.")
@click.option("--mask", type=IMAGE, multiple=True, help="White where the image shall change; as --image.")
@click.option("--mask-from", type=Choice(["alpha", "luminance"]), help="What of the mask says where.")
@click.option("--control", "controls", type=Control(), multiple=True,
              help="Steer with a ControlNet or an adapter; the same name again for the next prompt.")  # fmt: skip
@click.option("--prompt-2", type=Text(), help="SDXL: what the second text encoder reads.")
@click.option("--negative-2", "negative_prompt_2", type=Text(), help="SDXL: the same for the negative prompt.")
@click.option("--original-size", type=SIZE, help="SDXL: height and width to tell it; the image's by default.")
@click.option("--target-size", type=SIZE, help="SDXL: the same.")
@click.option("--crop", type=SIZE, default=(0, 0), help="SDXL: top and left of the crop to tell it.")
@click.option("--negative-original-size", type=SIZE, help="SDXL: height and width to tell it of the negative prompt.")
@click.option("--negative-target-size", type=SIZE, help="SDXL: the same.")
@click.option(
    "--negative-crop", type=SIZE, default=(0, 0), help="SDXL: top and left to tell it of the negative prompt."
)
@click.option("--aesthetic-score", default=6.0, show_default=True, help="SDXL's refiner: of the prompt.")
@click.option("--negative-aesthetic-score", default=2.5, show_default=True, help="SDXL's refiner: of the negative one.")
@click.option("--refiner", type=click.Path(path_type=Path), help="Bundle that ends what BUNDLE begins, as SDXL's does.")
@click.option("--refiner-start", default=0.8, show_default=True, help="BUNDLE's share of the timesteps, 0 to 1.")
@click.option("--denoising-end", type=float, help="Stop at this share of the timesteps, 0 to 1.")
@click.option("--denoising-start", type=float, help="Go on at this share with --latents that were left there.")
@click.option("--latents", type=IMAGE, help="Start from latents, an .npy file, in place of the seeds' noise.")
@click.option("--save-latents", is_flag=True, help="Also the latents after the last row, as OUT with the ending .npy.")
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
@click.option("--columns", type=click.IntRange(min=1), help="Of the grid; as square as it gets by default.")
@click.option("-o", "--out", type=Output(), default=Path("out.png"), show_default=True,
              help="File of the image, or of the grid of several: .png, .jpg or .webp.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace files that are there; without it, OUT gets a free number.")
def generate(
    bundle: Path, prompts: tuple[str, ...], batch: int | None, save_steps: bool, tile: int | None, tile_passes: int,
    on_overflow: str, low_memory: bool, keep_optimized: bool, backend: str, threads: int, columns: int | None,
    out: Path, controls: tuple[tuple[str, Any], ...], overwrite: bool, scheduler_config: Path | None,
    settings: dict[str, Any], refiner: Path | None, refiner_start: float, latents: Path | None, save_latents: bool,
    **asked: Any,
) -> None:  # fmt: skip
    """Make images of PROMPTS with BUNDLE: OUT, or OUT as a grid and a numbered file for each.

    Every parameter stands in the PNG's text chunk "ldmrt", or in the user comment of a JPEG's or WebP's EXIF.

    Example: ldmrt generate out/emoji64 "a red apple, noto style, blue background" -n 4 --seed 1 -o out/apple.png
    """
    import numpy as np

    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.pipeline.pipeline import open_pipeline
    from ldmrt.runtime.pipeline.refined import RefinedPipeline
    from ldmrt.runtime.samplers.registry import everyday_name
    from ldmrt.tools.console.image_paths import free_path, latents_of, numbered
    from ldmrt.tools.console.images import grid, save_image
    from ldmrt.tools.console.progress import console, watched

    if save_steps and batch is not None:
        raise LdmrtError("generate", "--save-steps cannot be combined with --batch", expected="only one of them")
    asked |= {name: one_or_all(asked[name]) for name in ("image", "mask")}
    asked["scheduler_settings"] = settings
    steered = {"controls": collected(controls), "latents": read_latents(latents)}
    request = request_of({"prompt": prompts, **steered, **asked})
    free = free_path(out, request.total_images, steps=save_steps, overwrite=overwrite, latents=save_latents)
    out = click.get_current_context().with_resource(free)
    begin = time.perf_counter()
    open_one = partial(
        open_pipeline,
        backend=backend,
        tile=tile,
        tile_passes=tile_passes,
        on_overflow=on_overflow,
        low_memory=low_memory,
        threads=threads,
        keep_optimized=keep_optimized,
        scheduler=scheduler_config,
    )
    base = open_one(bundle)
    pipeline = base if refiner is None else RefinedPipeline(base, open_one(refiner), refiner_start)
    opened = time.perf_counter()
    rows, at_once = pipeline.rows(request), batch or pipeline.images_at_once(request)
    parts = -(-request.total_images // at_once)
    previews: list[NDArray[Any]] = []
    if parts == 1 or save_steps:
        results = iter([in_rows(pipeline, request, rows, previews if save_steps else None)])
    else:
        results = watched(
            pipeline.draw(request.parts(at_once, base.shape.factor)), parts, lambda one: f"seed {one.seeds[-1]}"
        )

    shared = {"ldmrt": version("ldmrt"), "bundle": bundle.name} | noted(asked, request.controls)
    shared |= {"scheduler": request.scheduler or everyday_name(base.scheduler)}
    if refiner is not None:
        shared |= {"refiner": refiner.name, "refiner_start": refiner_start}
    written, images, took = [out], list[Any](), dict[str, float]()
    left: list[NDArray[Any]] = []
    number = -1
    for result in results:
        left += [result.latents] if save_latents else []
        took, size = result.seconds, result.latents.shape[2:]
        if cells := base.decoding.cells(base.shape.factor, size):
            shared |= {"tile": cells * base.shape.factor, "tile_passes": base.decoding.passes}
        shared |= {"height": result.pixels.shape[1], "width": result.pixels.shape[2]}
        for image, seed in zip(result.pixels, result.seeds, strict=True):
            number += 1
            prompt = prompts[number // request.num_images_per_prompt]
            path = out if request.total_images == 1 else numbered(out, number)
            save_image(path, image, notes({**shared, "prompt": prompt, "seed": seed}))
            images += [image] if request.total_images <= GRID else []
            written += [path] if path != out and request.total_images <= GRID else []
    if len(images) > 1:
        wide = columns or (request.num_images_per_prompt if len(prompts) > 1 else int(np.ceil(np.sqrt(len(images)))))
        save_image(
            out, grid(np.stack(images), wide), notes({**shared, "prompts": request.prompts, "seeds": request.seeds})
        )
    elif not images:
        written = [out.with_name(f"{out.stem}-*{out.suffix}")]  # too many for a grid
    if save_latents:
        written.append(save_array(latents_of(out), np.concatenate(left)))
    if save_steps:
        written += save_rows(pipeline, previews, out)
    pipeline.close()
    told = f"{rows} rows {took['latents']:.2f} s, decoded {took['decode']:.2f} s"
    if parts > 1 and not save_steps:
        told = f"{request.total_images} images of {rows} rows {time.perf_counter() - opened:.2f} s"
    console.print(f"opened {opened - begin:.2f} s, {told}", highlight=False)
    for path in written:
        click.echo(path)


def read_latents(path: Path | None) -> "NDArray[Any] | None":
    """Read the latents in an .npy file, of which nothing is unpickled."""
    import numpy as np

    from ldmrt.runtime.errors import LdmrtError, first_line
    from ldmrt.runtime.files.reading import plain_file

    if path is None:
        return None
    try:
        return np.asarray(np.lib.format.open_memmap(plain_file("generate", path), mode="r"))
    except (OSError, ValueError) as error:
        found = first_line(error)
        raise LdmrtError("generate", f"cannot read {path}", expected="an .npy file", found=found) from None


def save_array(path: Path, array: "NDArray[Any]") -> Path:
    """Write an array as .npy."""
    import numpy as np

    from ldmrt.runtime.files.writing import write_atomically

    with write_atomically(path) as file:
        np.save(file, array)
    return path


def in_rows(
    pipeline: "ImagePipeline", request: "Request", rows: int, previews: "list[NDArray[Any]] | None"
) -> "Result":
    """Make images and show progress by rows; `previews` collects the predicted clean latents of each."""
    from ldmrt.runtime.pipeline.call import Result
    from ldmrt.tools.console.progress import watched

    begin, x = time.perf_counter(), None
    for state in watched(pipeline.steps(request), rows, lambda s: f"row {s.row + 1} of {s.rows}"):
        x = state.x
        if previews is not None:
            previews.append(state.x0)
    sampled = time.perf_counter()
    assert x is not None
    images = pipeline.decode(x)
    return Result.of(images, x, request.seeds, {"latents": sampled - begin, "decode": time.perf_counter() - sampled})


def save_rows(pipeline: "ImagePipeline", previews: "list[NDArray[Any]]", out: Path) -> list[Path]:
    """Save the predicted clean image of each row in a folder beside OUT, and a strip of some: a line an image."""
    import numpy as np

    from ldmrt.tools.console.image_paths import steps_of
    from ldmrt.tools.console.images import grid, save_image

    decoded = [pipeline.decode(x0) for x0 in previews]
    folder, strip = steps_of(out)
    folder.mkdir(exist_ok=True)
    written = []
    for row, images in enumerate(decoded):
        written.append(folder / f"{row:03d}{out.suffix}")
        save_image(written[-1], grid(images, len(images)))
    shown = np.unique(np.linspace(0, len(decoded) - 1, STRIP).round().astype(int))
    pictures = [decoded[row][i] for i in range(len(decoded[0])) for row in shown]
    save_image(strip, grid(np.stack(pictures), len(shown)))
    return [*written, strip]


def noted(asked: dict[str, Any], controls: Mapping[str, tuple[Any, float]]) -> dict[str, Any]:
    """Return what stands in an image's text chunk of what was asked: files by their name alone."""
    plain = {key: names(value) if key in ("image", "mask") else value for key, value in asked.items()}
    plain.pop("seed"), plain.pop("count")
    return plain | {"controls": {name: [names(images), scale] for name, (images, scale) in controls.items()}}


def names(paths: Any) -> Any:
    """Return the names of no file, of one, or of several."""
    if isinstance(paths, list):
        return [Path(path).name for path in paths]
    return None if paths is None else Path(paths).name


def notes(parameters: dict[str, Any]) -> dict[str, str]:
    """The text chunk of an image."""
    return {"ldmrt": json.dumps(parameters, ensure_ascii=False)}
