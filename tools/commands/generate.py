"""Run `ldmrt generate`: make images from a bundle."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.terminal.protocols import AUTO, PROTOCOLS
from ldmrt.tools.options.checkpoint import WeighedFile
from ldmrt.tools.options.common import Choice
from ldmrt.tools.options.drawing import BATCH, HOW, with_opening, with_options
from ldmrt.tools.options.images import IMAGES, collected, one_or_all
from ldmrt.tools.options.loras import LORA, load_loras, weights_of
from ldmrt.tools.options.prompts import WORDING, worded
from ldmrt.tools.options.to_request import request_of
from ldmrt.tools.options.types import IMAGE, SIZE, Control, Sides, Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ldmrt.runtime.files.reading import JsonObject
    from ldmrt.runtime.pipeline.pipeline import Pipeline
    from ldmrt.runtime.pipeline.request.request import Request
    from ldmrt.runtime.samplers.plan import Latents

GRID = 1024  # most images in the grid


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", nargs=-1, type=Text())
@BATCH
@with_options(HOW)
@with_options(WORDING)
@click.option(
    "--prompts",
    "file",
    type=click.Path(path_type=Path),
    help="A .txt file with more PROMPTS, one in each line; or a .jsonl file of whole requests, as of `ldmrt batch`.",
)
@LORA
@click.option("--from", "from", help="Stage of a cascade to begin at, with --image; the first by default.")
@click.option("--until", help="Stage of a cascade to end at; the last by default.")
@click.option(
    "--class", "class_labels", type=int, multiple=True, help="Class to draw: one for all prompts, or one for each."
)
@click.option("--image", type=IMAGE, multiple=True, help="Image to start from; one for all prompts, or one for each.")
@click.option(
    "--mask", type=IMAGE, multiple=True, help="Mask, white where the image changes; one or several, as --image."
)
@click.option("--mask-from", type=Choice(["alpha", "luminance"]), help="Channel of the mask that is used.")
@click.option(
    "--mask-content",
    type=Choice(["original", "fill", "noise", "zeros"]),
    default="original",
    show_default=True,
    help="What the drawing starts from in the white of the mask.",
)
@click.option(
    "--padding-mask-crop",
    type=click.IntRange(min=0),
    metavar="PIXELS",
    help="Draw only the region around the mask, larger by PIXELS, and paste it over the image.",
)
@click.option(
    "--outpaint", type=Sides(), help="Draw so many pixels around --image, on the left, at the top, on the right, below."
)
@click.option(
    "--feather",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    help="Pixels of the image in which what is drawn around it fades into it.",
)
@click.option(
    "--control",
    "controls",
    type=Control(),
    multiple=True,
    help="Image of a ControlNet or an adapter; repeat a name for the next prompt.",
)
@click.option(
    "--ip-adapter-image", type=IMAGE, multiple=True, help="Image that an IP-Adapter reads; one or several, as --image."
)
@click.option("--prompt-2", type=Text(), help="SDXL, SD3 and FLUX.1: prompt of the second text encoder.")
@click.option("--negative-2", "negative_prompt_2", type=Text(), help="The same for the negative prompt.")
@click.option("--prompt-3", type=Text(), help="Stable Diffusion 3: prompt of T5.")
@click.option("--negative-3", "negative_prompt_3", type=Text(), help="The same for the negative prompt.")
@click.option("--original-size", type=SIZE, help="SDXL: height and width as conditioning; the image's by default.")
@click.option("--target-size", type=SIZE, help="SDXL: target height and width as conditioning; likewise.")
@click.option("--crop", type=SIZE, default=(0, 0), help="SDXL: top and left of the crop as conditioning.")
@click.option("--negative-original-size", type=SIZE, help="SDXL: --original-size of the negative prompt.")
@click.option("--negative-target-size", type=SIZE, help="SDXL: --target-size of the negative prompt.")
@click.option("--negative-crop", type=SIZE, default=(0, 0), help="SDXL: --crop of the negative prompt.")
@click.option("--aesthetic-score", default=6.0, show_default=True, help="SDXL's refiner: score of the prompt.")
@click.option(
    "--negative-aesthetic-score", default=2.5, show_default=True, help="SDXL's refiner: score of the negative prompt."
)
@click.option(
    "--refiner", type=click.Path(path_type=Path), help="Bundle that runs the last timesteps, as SDXL's refiner."
)
@click.option(
    "--refiner-start", default=0.8, show_default=True, help="Share of the timesteps before the refiner, 0 to 1."
)
@click.option("--denoising-end", type=float, help="Stop at this share of the timesteps, 0 to 1.")
@click.option("--denoising-start", type=float, help="Start at this share, with the --latents saved there.")
@click.option("--latents", type=IMAGE, help="Latents to start from instead of the seeds' noise, an .npy file.")
@click.option(
    "--save-latents", is_flag=True, help="Also save the latents after the last row, as OUT with the suffix .npy."
)
@click.option(
    "--save-steps", is_flag=True, help="Also save the predicted clean image of each row, and a strip of them."
)
@click.option(
    "--preview",
    type=Choice([AUTO, *PROTOCOLS]),
    help="Show in the terminal what each row predicts; auto takes half blocks where the terminal is not known.",
)
@with_opening
@click.option("--columns", type=click.IntRange(min=1), help="Columns of the grid; nearly square by default.")
@click.option(
    "-o",
    "--out",
    type=Output(),
    default=Path("out.png"),
    show_default=True,
    help="File of the image, or of the grid of several: .png, .jpg or .webp.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing files; without it, OUT gets a free number.")
def generate(
    bundle: Path,
    prompts: tuple[str, ...],
    file: Path | None,
    batch: int | None,
    save_steps: bool,
    preview: str | None,
    opening: dict[str, Any],
    columns: int | None,
    out: Path,
    controls: tuple[tuple[str, tuple[str, float]], ...],
    overwrite: bool,
    scheduler_config: Path | None,
    settings: "JsonObject",
    refiner: Path | None,
    refiner_start: float,
    latents: Path | None,
    save_latents: bool,
    styles: Path | None,
    style: tuple[str, ...],
    wildcards: Path | None,
    loras: tuple[WeighedFile, ...],
    **options: Any,
) -> None:
    """Make images of PROMPTS with BUNDLE: OUT, or OUT as a grid and a numbered file for each.

    A model that reads no text takes no PROMPTS. Of several requests, --prompts FILE.jsonl, OUT is a grid too if all
    images have one size.

    All parameters are saved in the file: `ldmrt info` shows them, `ldmrt replay` draws the image again, and other
    programs read AUTOMATIC1111's text of them.

    Example: ldmrt generate out/emoji64 "a red apple, noto style, blue background" -n 4 --seed 1 -o out/apple.png
    """
    import numpy as np

    from ldmrt.runtime.bundle.hub import local_bundle
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.images.resizing import UPSCALERS
    from ldmrt.runtime.pipeline.infotext.record import refiner_of
    from ldmrt.runtime.pipeline.opening import open_pipeline
    from ldmrt.runtime.pipeline.refined import RefinedPipeline
    from ldmrt.runtime.samplers.settings import read_scheduler
    from ldmrt.serve.batch.lines import is_json
    from ldmrt.tools.console.drawing.image_paths import check_name, depth_of, free_path, latents_of, numbered
    from ldmrt.tools.console.drawing.images import grid, save_depth, save_image
    from ldmrt.tools.console.drawing.latents import read_latents, save_array
    from ldmrt.tools.console.drawing.making import Making, open_hires_upscaler, upscaler_record
    from ldmrt.tools.console.drawing.metadata import ends_of, of_request, of_result
    from ldmrt.tools.console.drawing.rows import in_parts, in_rows, nearly_square, save_rows
    from ldmrt.tools.console.drawing.whole_requests import (
        check_alone,
        check_requests,
        draw_requests,
        images_of,
        read_requests,
    )
    from ldmrt.tools.console.progress import console
    from ldmrt.tools.console.terminal.screen import Screen

    if save_steps and batch is not None:
        raise LdmrtError("generate", "--save-steps cannot be combined with --batch", expected="only one of them")
    options |= {name: one_or_all(options[name]) for name in (*IMAGES, "class_labels")}
    options |= {"scheduler_settings": settings, "loras": weights_of(loras)}
    steering = collected(controls)
    if file is not None and is_json(file):
        others = {"PROMPTS": prompts, "--save-steps": save_steps, "--save-latents": save_latents, "--latents": latents}
        others |= {"--refiner": refiner, "--styles": styles, "--style": style, "--wildcards": wildcards}
        others["--hires-upscaler FOLDER"] = options["hires_upscaler"] not in UPSCALERS
        check_alone(file, others)
        lines = read_requests(file, {**options, "controls": steering})
        check_name(out)
        config = None if scheduler_config is None else read_scheduler(scheduler_config)
        with open_pipeline(bundle, scheduler=config, **opening) as base:
            loaded = load_loras(base, loras)
            check_requests(base, lines)
            making = Making.of(bundle, base, opening, scheduler_config=config, loras=loaded)
            screen = None if preview is None else Screen.of(sys.stderr, os.environ, preview)
            with free_path(
                out, images_of(lines), steps=False, overwrite=overwrite, depth=base.stages[-1].stage.depth > 0
            ) as name:
                for path in draw_requests(base, making, lines, name, batch, columns, screen):
                    click.echo(path)
        return
    prompts += () if file is None else read_prompts(file)
    given = {"prompt": prompts or None, "controls": steering, "latents": read_latents(latents), **options}
    given = worded(given, styles, style, wildcards)
    with_model = open_hires_upscaler(given["hires_upscaler"], opening)
    request = request_of(given if with_model is None else {**given, "hires_upscaler": with_model})
    check_name(out)
    begin = time.perf_counter()

    config = None if scheduler_config is None else read_scheduler(scheduler_config)

    def open_one(path: Path) -> "Pipeline":
        return open_pipeline(path, scheduler=config, **opening)

    base = open_one(bundle)
    loaded = load_loras(base, loras)
    first, last = ends_of(base, request)
    free = free_path(
        out,
        request.total_images,
        steps=save_steps,
        overwrite=overwrite,
        latents=save_latents,
        depth=last.stage.depth > 0,
    )
    out = click.get_current_context().with_resource(free)
    pipeline = base if refiner is None else RefinedPipeline(base, open_one(refiner), refiner_start)
    opened = time.perf_counter()
    rows, at_once = pipeline.rows(request), batch or pipeline.images_at_once(request)
    parts = -(-request.total_images // at_once)
    previews = list[tuple[str, "Latents"]]()
    screen = None if preview is None else Screen.of(sys.stderr, os.environ, preview)
    whole = request.total_images == 1 or not base.later  # a later stage may have to make its images in parts
    if save_steps or (parts == 1 and whole):
        results = iter([in_rows(pipeline, request, rows, previews if save_steps else None, screen)])
    else:
        results = in_parts(pipeline.draw(base.parts(request, at_once)), parts, screen)

    negative = given["negative_prompt"]  # one for each image where it has wildcards
    options["negative_prompt"] = negative if negative is None or isinstance(negative, str) else None
    options["hires_upscaler"] = options["hires_upscaler"] if with_model is None else with_model.name
    shared = of_request(bundle.name, first, options, steering)
    ended = None if refiner is None else refiner_of(refiner.name, local_bundle(refiner), refiner_start)
    upscaler = None if with_model is None else upscaler_record(given["hires_upscaler"])
    more: dict[str, Any] = {"scheduler_config": config, "refiner": ended, "loras": loaded, "upscaler": upscaler}
    making = Making.of(bundle, first, opening, **more)
    alone = base.parts(request, 1)
    if refiner is not None:
        shared |= {"refiner": refiner.name, "refiner_start": refiner_start}
    written, images, seconds = [out], list["NDArray[np.uint8]"](), dict[str, float]()
    final, alike = list["Latents"](), list[tuple["Request", tuple[Path, int] | None]]()
    number = -1
    for result in results:
        final += [result.latents] if save_latents else []
        seconds, depths, flags = result.seconds, result.depth, result.nsfw_content_detected
        shared |= of_result(base, last, result)
        for place, (image, seed) in enumerate(zip(result.pixels, result.seeds, strict=True)):
            number += 1
            prompt = request.prompts[number]
            path = out if request.total_images == 1 else numbered(out, number)
            own = {"negative_prompt": negative[number]} if isinstance(negative, list) else {}
            own |= {"variation_seed": request.variation_seeds[number]} if request.variation_seeds else {}
            facts = {**shared, **own, "prompt": prompt, "seed": seed}
            source, own_request = None if latents is None else (latents, number), next(alone)
            save_image(path, image, making.notes(facts, own_request, image, source))
            if depths is not None:
                save_depth(depth_of(path), depths[place])
                written += [depth_of(path)] if request.total_images <= GRID else []
            images += [image] if request.total_images <= GRID else []
            alike += [(own_request, source)] if request.total_images <= GRID else []
            written += [path] if path != out and request.total_images <= GRID else []
    if len(images) > 1:
        each = request.num_images_per_prompt
        columns = columns or (each if each > 1 and len(prompts) > 1 else nearly_square(len(images)))
        facts = {**shared, "prompts": request.prompts, "seeds": request.seeds}
        save_image(out, grid(np.stack(images), columns), making.grid_notes(facts, alike, columns))
    elif not images:
        written = [out.with_name(f"{out.stem}-*{out.suffix}")]  # too many for a grid
    if save_latents:
        written.append(save_array(latents_of(out), np.concatenate(final)))
    if save_steps:
        written += save_rows(pipeline, previews, out, flags)
    pipeline.close()
    if with_model is not None:
        with_model.close()
    times = f"{rows} rows {seconds['latents']:.2f} s, decoded {seconds['decode']:.2f} s"
    if parts > 1 and not save_steps:
        times = f"{request.total_images} images of {rows} rows {time.perf_counter() - opened:.2f} s"
    console.print(f"opened {opened - begin:.2f} s, {times}", highlight=False)
    for path in written:
        click.echo(path)


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the prompts of a text file, one in each line that is not blank.

    Raises:
        LdmrtError: The file cannot be read, or holds nothing.
    """
    from ldmrt.serve.batch.lines import check_file, read_lines

    return tuple(line.text for line in read_lines(path, check_file(path)) if not line.is_blank)
