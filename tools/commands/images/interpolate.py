"""Run `ldmrt interpolate`: an animation from prompt to prompt."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.drawing import HOW, with_opening, with_options, without
from ldmrt.tools.options.to_request import request_of
from ldmrt.tools.options.types import Seeds, Text

if TYPE_CHECKING:
    from ldmrt.runtime.files.reading import JsonObject

OF_ONE = ("count", "hires", "hires_strength", "hires_steps", "hires_upscaler", "noise_level", "strength")


@without(*OF_ONE)
@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", nargs=-1, type=Text())
@click.option("--frames", type=click.IntRange(2, 10_000), default=24, show_default=True, help="Frames in all.")
@click.option("--fps", type=click.FloatRange(0.1, 100), default=12.0, show_default=True, help="Frames a second.")
@click.option("--seeds", type=Seeds(), help="A seed for each prompt, such as 1,5; --seed is that of all.")
@with_options(HOW)
@with_opening
@click.option(
    "-o", "--out", type=Output(), default=Path("out.gif"), show_default=True, help="File: .gif, .webp or .mp4."
)
@click.option("--save-frames", type=Output(folder=True), metavar="FOLDER", help="Also save each frame there, as a PNG.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file; without it, OUT gets a free number.")
def interpolate(
    bundle: Path,
    prompts: tuple[str, ...],
    frames: int,
    fps: float,
    seeds: tuple[int, ...] | None,
    opening: dict[str, Any],
    out: Path,
    save_frames: Path | None,
    overwrite: bool,
    scheduler_config: Path | None,
    settings: "JsonObject",
    **options: Any,
) -> None:
    """Draw an animation from each of PROMPTS to the next with BUNDLE: OUT.

    What the prompts are encoded to is mixed, and where there are several seeds their noise is turned from one to the
    next. The first and the last frame are the images of the first and the last prompt. One prompt with several seeds
    is allowed.

    Example: ldmrt interpolate out/emoji64 "a red apple, noto style" "a fox, noto style" --frames 24 -o out/fox.gif
    """
    import numpy as np

    import ldmrt
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.images.animation import FORMATS, check_animation, encode_animation
    from ldmrt.runtime.images.png import notes
    from ldmrt.runtime.pipeline.denoising.interpolation import check_keys
    from ldmrt.runtime.pipeline.opening import open_pipeline
    from ldmrt.runtime.samplers.settings import read_scheduler
    from ldmrt.tools.console.drawing.image_paths import free_path
    from ldmrt.tools.console.drawing.images import parameters, save_image
    from ldmrt.tools.console.progress import watched

    out = click.get_current_context().with_resource(
        free_path(out, 1, steps=False, overwrite=overwrite, formats=FORMATS)
    )
    check_animation(out)
    options["scheduler_settings"] = settings
    own = seeds or (options["seed"],)
    keys = max(len(prompts), len(own))
    if len(own) not in (1, keys) or len(prompts) not in (0, 1, keys):
        expected = f"1 or {len(prompts)} (one per prompt)"
        raise LdmrtError("--seeds", "wrong number of seeds", expected=expected, found=len(own))
    told, drawn = list(prompts) * (keys if len(prompts) == 1 else 1), list(own) * (keys if len(own) == 1 else 1)
    requests = [request_of({**options, "prompt": told[i] if told else None, "seed": drawn[i]}) for i in range(keys)]
    check_keys(requests, frames)
    config = None if scheduler_config is None else read_scheduler(scheduler_config)
    with open_pipeline(bundle, scheduler=config, **opening) as pipeline:
        results = watched(pipeline.interpolate(requests, frames), frames, lambda result: f"seed {result.seeds[0]}")
        images = [result.pixels[0] for result in results]
    facts = {"ldmrt": ldmrt.__version__, "bundle": bundle.name, **parameters({**options, "count": 1}, {})}
    facts |= {"prompts": told, "seeds": drawn, "frames": frames, "fps": fps}
    said = notes(facts)
    with write_atomically(out) as file:
        file.write(encode_animation(images, out.suffix.lower(), fps, said["ldmrt"]))
    if save_frames is not None:
        save_frames.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            save_image(
                save_frames / f"{number:04d}.png", np.ascontiguousarray(image), notes({**facts, "frame": number})
            )
        click.echo(save_frames)
    click.echo(out)
