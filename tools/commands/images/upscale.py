"""Run `ldmrt upscale`: enlarge an image with a bundle of an upscaler."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ldmrt
from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.common import COMPUTE, THREADS
from ldmrt.tools.options.to_request import request_of
from ldmrt.tools.options.types import IMAGE, Text

if TYPE_CHECKING:
    from ldmrt.runtime.files.reading import JsonObject


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("image", type=IMAGE)
@click.option("--prompt", default="", type=Text(), help="What the image shows.")
@click.option("--negative", "negative_prompt", type=Text(), help="What the enlarged image should not show.")
@click.option("--noise-level", type=int, help="Timestep whose noise is added to the image; 20 by default.")
@click.option("--steps", default=20, show_default=True, help="Steps of the sampler.")
@click.option("--guidance", default=5.0, show_default=True, help="Guidance scale; 1 is none.")
@click.option("--seed", default=0, show_default=True, help="Seed of the image.")
@click.option("--noise", default="ldmrt", show_default=True, help="Whose random numbers, as of `ldmrt generate`.")
@click.option("--scheduler", help="Name of a sampler, see `ldmrt samplers`; the bundle's own by default.")
@click.option("--tile", type=int, help="Run in overlapping tiles of so many pixels: less memory.")
@click.option(
    "--overlap", default=32, show_default=True, help="Upscale model: pixels of the image that neighbouring tiles share."
)
@click.option("--batch", default=1, show_default=True, help="Upscale model: tiles that the network takes at once.")
@click.option("--low-memory", is_flag=True, help="Keep one stage in memory at a time; tiles above 768 pixels.")
@click.option("--backend", default="auto", show_default=True, help="As of `ldmrt generate`.")
@COMPUTE
@THREADS
@click.option(
    "-o", "--out", type=Output(), default=Path("out.png"), show_default=True, help="File: .png, .jpg or .webp."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file; without it, OUT gets a free number.")
def upscale(
    bundle: Path,
    image: Path,
    tile: int | None,
    overlap: int,
    batch: int,
    low_memory: bool,
    backend: str,
    compute: str,
    threads: int,
    out: Path,
    overwrite: bool,
    **options: Any,
) -> None:
    """Enlarge IMAGE with BUNDLE, which was exported from an upscaler: OUT is so many times larger as it was trained to.

    BUNDLE is a diffusion upscaler, or a cascade, of which the last stage runs; or an upscale model such as ESRGAN's,
    which takes no prompt and runs in tiles of 256 pixels: transparency is resized beside it, grey stays grey.

    Example: ldmrt upscale out/x4-upscaler small.png --prompt "a white cat" -o out/large.png
    """
    from ldmrt.runtime.bundle.hub import local_bundle
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.pipeline.autoencoder.upscale_bundle import is_upscale_model
    from ldmrt.runtime.pipeline.autoencoder.upscale_model import TILE
    from ldmrt.runtime.pipeline.opening import open_pipeline
    from ldmrt.runtime.samplers.registry import everyday_name
    from ldmrt.tools.console.drawing.image_paths import check_name, free_path
    from ldmrt.tools.console.drawing.images import parameters, save_image
    from ldmrt.tools.console.drawing.making import Making
    from ldmrt.tools.console.drawing.replaying.enlarged import enlarge
    from ldmrt.tools.console.drawing.rows import in_rows
    from ldmrt.tools.console.verification.upscale_model import accept_only

    if is_upscale_model(local_bundle(bundle)):
        accept_only(("tile", "overlap", "batch", "backend", "compute", "threads", "out", "overwrite"))
        check_name(out)
        how: dict[str, Any] = {"tile": tile or TILE, "overlap": overlap, "batch": batch, "compute": compute}
        out = click.get_current_context().with_resource(free_path(out, 1, steps=False, overwrite=overwrite))
        enlarge(bundle, image, {**how, "threads": threads, "backend": backend}, out.suffix.lower()).save(out)
        click.echo(out)
        return
    request = request_of({**options, "image": image})
    out = click.get_current_context().with_resource(free_path(out, 1, steps=False, overwrite=overwrite))
    opening: dict[str, Any] = {"backend": backend, "tile": tile, "low_memory": low_memory, "compute": compute}
    opening["threads"] = threads
    with open_pipeline(bundle, **opening) as pipeline:
        last = pipeline.stages[-1]
        if last.stage.enlarges == 1:
            hint = f'ldmrt generate {bundle} "{request.prompts[0]}" --image {image}'
            raise LdmrtError("upscale", f"{bundle} enlarges no image", expected="an upscaler's bundle", hint=hint)
        request = replace(request, from_stage=last.stage.name)
        result = in_rows(pipeline, request, pipeline.rows(request), None)
        facts: JsonObject = {"ldmrt": ldmrt.__version__, "bundle": bundle.name} | parameters(
            {**options, "count": 1}, {}
        )
        facts |= {"scheduler": request.scheduler or everyday_name(last.scheduler)}
        height, width = result.pixels.shape[1:3]
        facts |= {"height": height, "width": width, "image": image.name, "seed": result.seeds[0]}
        factor = last.stage.space.factor
        if cells := last.decoding.cells(factor, result.latents.shape[2:]):
            facts |= {"tile": cells * factor, "tile_passes": last.decoding.passes}
        facts["prompt"] = request.prompts[0]
        making = Making.of(bundle, last, opening)
        save_image(out, result.pixels[0], making.notes(facts, request, result.pixels[0]))
    click.echo(out)
