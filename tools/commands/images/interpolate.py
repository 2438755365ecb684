"""Run `ldmrt interpolate`: an animation from prompt to prompt."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.checkpoint import WeighedFile
from ldmrt.tools.options.drawing import HOW, with_opening, with_options, without
from ldmrt.tools.options.loras import LORA, load_loras, weights_of
from ldmrt.tools.options.prompts import WORDING, worded
from ldmrt.tools.options.to_request import request_of
from ldmrt.tools.options.types import Seeds, Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from ldmrt.runtime.files.reading import JsonObject

# Options of what this command does not take: several images of a prompt, a second pass, images.
OF_OTHERS = (
    "count", "hires", "hires_strength", "hires_steps", "hires_upscaler", "ip_adapter_scale", "noise_level", "strength",
)  # fmt: skip


@without(*OF_OTHERS)
@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", nargs=-1, type=Text())
@click.option("--frames", type=click.IntRange(2, 10_000), default=24, show_default=True, help="Frames in all.")
@click.option("--fps", type=click.FloatRange(0.1, 100), default=12.0, show_default=True, help="Frames a second.")
@click.option("--seeds", type=Seeds(), help="A seed for each prompt, such as 1,5; --seed is that of all.")
@with_options(HOW)
@with_options(WORDING)
@LORA
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
    styles: Path | None,
    style: tuple[str, ...],
    wildcards: Path | None,
    loras: tuple[WeighedFile, ...],
    **options: Any,
) -> None:
    """Draw an animation from each of PROMPTS to the next with BUNDLE: OUT.

    Prompt embeddings are interpolated linearly, and the noise of several seeds by slerp. The first and the last frame
    are the images of the first and the last prompt. One prompt with several seeds is allowed.

    Example: ldmrt interpolate out/emoji64 "a red apple, noto style" "a fox, noto style" --frames 24 -o out/fox.gif
    """
    import numpy as np

    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.images.animation import FORMATS, check_animation
    from ldmrt.runtime.images.png import notes
    from ldmrt.runtime.pipeline.denoising.interpolation import check_keys
    from ldmrt.runtime.pipeline.opening import open_pipeline
    from ldmrt.runtime.samplers.settings import read_scheduler
    from ldmrt.tools.console.drawing.embedded.animations import encode_with_parameters
    from ldmrt.tools.console.drawing.image_paths import free_path
    from ldmrt.tools.console.drawing.images import save_image
    from ldmrt.tools.console.drawing.making import Making
    from ldmrt.tools.console.drawing.metadata import of_request
    from ldmrt.tools.console.progress import watched

    out = click.get_current_context().with_resource(
        free_path(out, 1, steps=False, overwrite=overwrite, formats=FORMATS)
    )
    check_animation(out)
    options |= {"scheduler_settings": settings, "loras": weights_of(loras), "count": 1}
    given = seeds or (options["seed"],)
    keys = max(len(prompts), len(given))
    if len(given) not in (1, keys) or len(prompts) not in (0, 1, keys):
        expected = f"1 or {len(prompts)} (one per prompt)"
        raise LdmrtError("--seeds", "wrong number of seeds", expected=expected, found=len(given))
    key_prompts = list(prompts) * (keys if len(prompts) == 1 else 1)
    key_seeds = list(given) * (keys if len(given) == 1 else 1)
    each = [{**options, "prompt": key_prompts[i : i + 1] or None, "seed": key_seeds[i]} for i in range(keys)]
    each = [worded(values, styles, style, wildcards) for values in each]
    first, requests = each[0], [request_of(values) for values in each]
    check_keys(requests, frames)
    config = None if scheduler_config is None else read_scheduler(scheduler_config)

    def saved(pixels: "Iterable[NDArray[np.uint8]]", facts: "JsonObject") -> "Iterator[NDArray[np.uint8]]":
        """Yield each frame, saved where that is asked for: those before an interruption stay."""
        for number, image in enumerate(pixels):
            if save_frames is not None:
                save_frames.mkdir(parents=True, exist_ok=True)
                place = save_frames / f"{number:04d}.png"
                save_image(place, np.ascontiguousarray(image), notes({"frame": number, **facts}))
            yield image

    with open_pipeline(bundle, scheduler=config, **opening) as pipeline:
        used = load_loras(pipeline, loras)
        height, width = pipeline.final_size(requests[0])
        asked = {**options, "negative_prompt": first["negative_prompt"]}
        facts = of_request(bundle.name, pipeline, asked, {}) | {"height": height, "width": width}
        facts |= {
            "prompts": [request.prompts[0] for request in requests] if prompts else [],
            "seeds": key_seeds,
            "frames": frames,
            "fps": fps,
        }
        facts = Making.of(bundle, pipeline, opening, scheduler_config=config, loras=used).animation_facts(
            facts, requests
        )
        results = watched(pipeline.interpolate(requests, frames), frames, lambda result: f"seed {result.seeds[0]}")
        images = saved((result.pixels[0] for result in results), facts)
        animation = encode_with_parameters(images, FORMATS[out.suffix.lower()], fps, facts)
    with write_atomically(out) as file:
        file.write(animation)
    if save_frames is not None:
        click.echo(save_frames)
    click.echo(out)
