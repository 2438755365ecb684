"""Options that every command has which draws from prompts: how images are drawn, and how the bundle is opened."""

from collections.abc import Callable
from functools import reduce, wraps
from pathlib import Path
from typing import Any

import click

from .checkpoint import SCHEDULER
from .common import COMPUTE, THREADS, Choice
from .types import Batch, BlockScales, ByStage, Interval, Layers, Text

Decorator = Callable[[Any], Any]


def with_options(decorators: "tuple[Decorator, ...]") -> Decorator:
    """Return a decorator that gives a command these options, in their order."""
    return lambda command: reduce(lambda made, decorate: decorate(made), reversed(decorators), command)


def without(*names: str) -> Decorator:
    """Return a decorator that takes options from a command, by the names of their values."""

    def reduced(command: click.Command) -> click.Command:
        command.params = [param for param in command.params if param.name not in names]
        return command

    return reduced


class Upscaler(Choice):
    """An option that takes the name of what enlarges between two passes, or the folder of an upscale model's bundle."""

    def __init__(self) -> None:
        """Name the choices, which are those of `ldmrt.runtime.images.resizing.UPSCALERS`."""
        latent = ("latent", "latent-nearest", "latent-nearest-exact", "latent-bicubic", "latent-bicubic-antialiased")
        super().__init__([*latent, "pixel"])

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or the path of a folder that is there, which `ldmrt generate` alone takes."""
        if Path(str(value)).is_dir():
            if ctx is not None and ctx.info_name == "generate":
                return str(value)
            self.fail("only `ldmrt generate` draws a second pass through an upscale model", param, ctx)
        return super().convert(value, param, ctx)


BATCH = click.option(
    "--batch",
    type=Batch(),
    default="auto",
    show_default=True,
    help="Images per batch; auto: as engines were built for, else as fit in memory, at most 16 of 512x512.",
)
HOW: tuple[Decorator, ...] = (  # images are drawn; the names of the values are short words of a request
    click.option("--negative", "negative_prompt", type=Text(), help="What the images should not show."),
    click.option(
        "--prompt-syntax",
        type=Choice(["plain", "a1111", "compel"]),
        default="plain",
        show_default=True,
        help="How prompts are read: a1111 and compel have weights, and parts that are drawn together.",
    ),
    click.option(
        "-n", "count", type=click.IntRange(min=1), default=1, show_default=True, help="Images of each prompt."
    ),
    click.option(
        "--steps",
        type=ByStage(click.INT),
        default=20,
        show_default=True,
        help="Steps of the sampler, some of which run the U-Net twice per step; or by stage, base=50,upscale=20.",
    ),
    click.option(
        "--guidance",
        type=ByStage(click.FLOAT),
        help="Guidance scale, or by stage; 1 is none, but for FLUX.1 dev; of Z-Image 0 is. The model's own by default: "
        "5, of SD3 7, of FLUX.1 3.5, of Fill 30, of PixArt and Sana 4.5.",
    ),
    click.option("--image-guidance", type=float, help="InstructPix2Pix: guidance scale of the image; 1.5 by default."),
    click.option(
        "--true-cfg-scale",
        default=1.0,
        show_default=True,
        help="FLUX.1: guidance scale by --negative, at two rows of the network for an image; 1 is none.",
    ),
    click.option(
        "--skip-guidance-layers",
        type=Layers(),
        help="Stable Diffusion 3.5: guide by a row without these layers too, as exported with --skip-layers.",
    ),
    click.option("--skip-layer-guidance-scale", default=2.8, show_default=True, help="Scale of that row."),
    click.option(
        "--skip-layer-guidance-start", default=0.01, show_default=True, help="Share of the steps after which it runs."
    ),
    click.option(
        "--skip-layer-guidance-stop", default=0.2, show_default=True, help="Share of the steps before which it runs."
    ),
    click.option(
        "--guidance-rescale",
        default=0.0,
        show_default=True,
        help="Share of the contrast added by guidance that is removed, 0 to 1.",
    ),
    click.option(
        "--cfg-normalization",
        default=0.0,
        show_default=True,
        help="Largest norm of a guided prediction, times that of the prompt's own; 0 is any.",
    ),
    click.option(
        "--guidance-interval", type=Interval(), help="Use guidance only at noise levels sigma/alpha between these."
    ),
    click.option(
        "--deep-cache", type=int, metavar="N", help="Run the U-Net's deep layers only at every N-th time: faster."
    ),
    click.option("--seed", default=0, show_default=True, help="Seed of the first image; the next ones count up."),
    click.option(
        "--variation-seed",
        type=int,
        help="Seed of a second noise that is mixed in; images count it up in place of --seed.",
    ),
    click.option("--variation-strength", default=0.0, show_default=True, help="How much of it is mixed in, 0 to 1."),
    click.option(
        "--noise",
        default="ldmrt",
        show_default=True,
        help="Whose random numbers the seed stands for: ldmrt, torch-cpu, torch-cuda or a1111.",
    ),
    click.option("--width", type=int, help="Width in pixels; that of --image or the model's own by default."),
    click.option("--height", type=int, help="Height in pixels; likewise."),
    click.option(
        "--scheduler",
        type=ByStage(click.STRING),
        help="Name of a sampler, or by stage, see `ldmrt samplers`; the bundle's own by default.",
    ),
    SCHEDULER[0],
    SCHEDULER[1],
    click.option("--eta", type=float, help="Share of fresh noise in each step, 0 to 1."),
    click.option("--clip-skip", default=0, show_default=True, help="Last layers of the text encoder to skip."),
    click.option("--negative-clip-skip", default=0, show_default=True, help="The same for the negative prompt."),
    click.option(
        "--noise-level", type=int, help="Upscaler: timestep whose noise is added to the image; 20 by default."
    ),
    click.option(
        "--hires", type=float, metavar="TIMES", help="Draw a second time, so many times larger: `Hires. fix`."
    ),
    click.option(
        "--hires-strength", default=0.5, show_default=True, help="How much noise is added before that, 0 to 1."
    ),
    click.option("--hires-steps", type=int, help="Steps of the second time, as --steps, which is the default."),
    click.option(
        "--hires-upscaler",
        type=Upscaler(),
        default="latent",
        show_default=True,
        help="What enlarges in between: latents, or pixels, which are decoded and encoded; `ldmrt generate` also takes "
        "the bundle of an upscale model.",
    ),
    click.option(
        "--ip-adapter-scale",
        type=BlockScales(),
        default=1.0,
        show_default=True,
        help="How much the IP-Adapter's image counts; or by block, in JSON, as diffusers' set_ip_adapter_scale has it.",
    ),
    click.option("--strength", default=0.8, show_default=True, help="How much noise is added to the image, 0 to 1."),
)
OPENING: tuple[Decorator, ...] = (  # the values are arguments of `open_pipeline`
    click.option("--tile", type=int, help="Decode and encode in overlapping tiles of so many pixels: less memory."),
    click.option(
        "--tile-passes", default=3, show_default=True, help="Passes over all tiles; 1 computes each tile on its own."
    ),
    click.option("--low-memory", is_flag=True, help="Keep one stage in memory at a time; tiles above 768 pixels."),
    click.option(
        "--keep-optimized",
        is_flag=True,
        help="Save the networks as they were optimised: later starts are faster.",
    ),
    click.option(
        "--on-overflow", default="stop", show_default=True, help="If an image is not finite: stop, or retry in float32."
    ),
    click.option(
        "--backend",
        default="auto",
        show_default=True,
        help="onnxruntime, onnxruntime-cuda, openvino, openvino-gpu, openvino-npu, tensorrt, tensorrt-rtx; auto takes "
        "engines that fit this machine's GPU, else ONNX Runtime.",
    ),
    COMPUTE,
    THREADS,
    click.option(
        "--safety",
        type=Choice(["on", "report", "off"]),
        default="on",
        show_default=True,
        help="Images that the bundle's safety checker flags, if it has one: black, as they are, or not looked for.",
    ),
)


def with_opening(command: Any) -> Any:
    """Give a command the options of `OPENING`, whose values it takes as one argument, `opening`."""

    @wraps(command)
    def run(*arguments: Any, **values: Any) -> Any:
        opening = {name: values.pop(name) for name in names}
        return command(*arguments, opening=opening, **values)

    names = [param.name for param in with_options(OPENING)(lambda: None).__click_params__]
    return with_options(OPENING)(run)
