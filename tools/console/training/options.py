"""Define the options that all trainings have, and what they are together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.common import CAPTION_COLUMN, PROMPT, SIDE, Choice

from .data import open_data
from .launching import joined
from .recipe import Change, differing, recipe_of
from .variation import ENLARGED, NO_WORDING, Variation, finite, variation_options

if TYPE_CHECKING:
    from ldmrt.model.training.data.buckets import BucketedImages
    from ldmrt.model.training.data.captioned import ImageFolder
    from ldmrt.model.training.loop.processes import Processes
    from ldmrt.model.training.loop.settings import Settings
    from ldmrt.tools.emoji.dataset import Emoji

    Opened = ImageFolder | BucketedImages | Emoji

OWN = ("recipe", "task", "differing", "group")  # fields that are no options
RATE = click.FloatRange(0, 1, min_open=True)
POSITIVE = click.FloatRange(0, 1000, min_open=True)
F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")


@dataclass(frozen=True)
class Options(Variation):
    """Holds the values of the options that all trainings have."""

    folder: Path
    styles: tuple[str, ...]
    groups: tuple[str, ...]
    layouts: tuple[str, ...]
    prompt: str | None
    caption_column: str
    out: Path
    steps: int
    batch: int
    accumulate: int
    learning_rate: float
    schedule: str
    warmup: int
    optimizer: str
    ema: tuple[float, ...]
    ema_on_cpu: bool
    size: int
    buckets: bool
    on_bad: str
    on_small: str
    validation: float | None
    seed: int
    device: str
    precision: str
    checkpointing: bool
    compile: bool
    save_every: int
    keep: int
    log_every: int
    tensorboard: bool
    wandb: bool
    resume: bool
    change: tuple[str, ...]
    processes: int
    plan: bool
    recipe: str  # of all options of the training
    task: str
    differing: Mapping[str, Change]  # options that do not have their default, by their keys in the recipe
    group: "Processes | None" = None  # that this process is one of

    def settings(self) -> "Settings":
        """Return the settings of the run.

        Raises:
            LdmrtError: They cannot be combined.
        """
        from ldmrt.model.training.loop.settings import Settings

        decays = tuple(dict.fromkeys(self.ema))
        return Settings(
            self.steps, self.batch, self.learning_rate, warmup=self.warmup, schedule=self.schedule,
            optimizer=self.optimizer, accumulate=self.accumulate, seed=self.seed, device=self.device,
            precision=self.precision, checkpointing=self.checkpointing, skip_unreadable=self.on_bad == "skip",
            compile=self.compile and not self.plan,
            ema=decays if len(decays) > 1 else decays[0], ema_on_cpu=self.ema_on_cpu,
        )  # fmt: skip

    @property
    def shaped(self) -> dict[str, object]:
        """What a resumed run must have in common with the saved one beside its data and its settings."""
        most = self.max_upscale if self.on_small == "skip" and self.max_upscale != ENLARGED else None
        return {"buckets": self.buckets or None, "max_upscale": most, **self.varied}

    def open_data(self, unit: int | None = None) -> "tuple[Opened, ImageFolder | BucketedImages | None]":
        """Open the images, as `open_data` does; return those to train on, and those that are held out.

        Of several processes the first opens and checks them.

        Args:
            unit: The pixels that sides have to be multiples of with --buckets; None where images have to be squares.
        """
        return self.once(lambda: self._open_data(unit))

    def once(self, make: Callable[[], T]) -> T:
        """Return what the first of several processes makes, such as files that it writes."""
        return make() if self.group is None else self.group.once(make)

    def _open_data(self, unit: int | None) -> "tuple[Opened, ImageFolder | BucketedImages | None]":
        """See `open_data`."""
        from ldmrt.model.training.data.buckets import BucketedImages, bucket_shapes
        from ldmrt.model.training.data.captioned import ImageFolder
        from ldmrt.model.training.validation import split

        if self.buckets and unit is None:
            raise LdmrtError("train", "this training is of squares", hint="no --buckets")
        shapes = bucket_shapes(self.size, unit) if self.buckets and unit else ()
        images = open_data(
            self.folder, self.size, batch=self.batch, styles=self.styles, groups=self.groups, layouts=self.layouts,
            skip_bad=self.on_bad == "skip", skip_small=self.on_small == "skip",
            prompt=self.prompt, column=self.caption_column, shapes=shapes, empty=self.empty == "allow",
            max_upscale=self.max_upscale,
        )  # fmt: skip
        if not isinstance(images, ImageFolder):
            own = [f"--{name.replace('_', '-')}" for name, value in self.varied.items() if value]
            own += ["--buckets"] * self.buckets + ["--empty"] * (self.empty != "refuse")
            own += ["--max-upscale"] * (self.max_upscale != ENLARGED)
            if own:
                raise LdmrtError("train", f"{own[0]} is for images of your own", hint=f"no {' '.join(own)}")
            if self.validation is not None:
                hint = "no --validation; pairs of emoji and background are held out already"
                raise LdmrtError("train", "--validation is for images of your own", hint=hint)
            return images, None
        images = replace(images, augmentation=self.augmentation(), wording=self.wording())
        train, held = (images, None) if self.validation is None else split(images, self.validation)
        if not shapes:
            return train, held
        return BucketedImages.of(train, shapes), None if held is None else BucketedImages.of(held, shapes)


def training_options(
    steps: int, batch: int, rate: float, *, captions: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a decorator that adds the options of every training, with these defaults; the command takes `Options`.

    Those that change the words of captions are added only where the training reads `captions` as texts.
    """
    options = [
        click.option("--data", "folder", type=click.Path(path_type=Path), required=True,
                     help="Sprites of `ldmrt data emoji`, a folder of images, shard-{000..127}.tar, or hf:OWNER/NAME."),
        click.option("--style", "styles", multiple=True, help="Emoji styles to use; all by default."),
        click.option("--group", "groups", multiple=True, help="Emoji groups to use; all by default."),
        click.option("--layout", "layouts", multiple=True, default=["large"], show_default=True,
                     help="Emoji layouts: large, small, pair."),
        PROMPT,
        CAPTION_COLUMN,
        click.option("--out", type=Output(folder=True), required=True, help="Folder of the run."),
        click.option("--steps", type=click.IntRange(min=1), default=steps, show_default=True,
                     help="Batches to learn from."),
        click.option("--batch", type=click.IntRange(min=1), default=batch, show_default=True,
                     help="Images per step."),
        click.option("--accumulate", type=click.IntRange(min=1), default=1, show_default=True,
                     help="Parts that a batch is computed in: less memory, the same step."),
        click.option("--learning-rate", type=RATE, default=rate, show_default=True,
                     callback=finite, help="The highest learning rate, after the warm-up."),
        click.option("--schedule", type=Choice(["constant", "cosine", "linear", "polynomial"]), default="cosine",
                     show_default=True, help="How the learning rate changes after the warm-up."),
        click.option("--warmup", type=click.IntRange(min=0), default=200, show_default=True,
                     help="Steps in which the learning rate rises from 0."),
        click.option("--optimizer", "optimizer", type=Choice(["adamw", "adamw8bit", "sgd", "lion"]), default="adamw",
                     show_default=True, help="How a step changes the weights."),
        click.option("--ema", type=click.FloatRange(0, 1, max_open=True), multiple=True, default=[0.999],
                     show_default=True, callback=finite,
                     help="Decay of the weights' average; may be repeated: the first is written, all are kept."),
        click.option("--ema-on-cpu", is_flag=True,
                     help="Keep averages in the CPU's memory: less of the GPU's, a slower step."),
        SIDE,
        click.option("--buckets", is_flag=True,
                     help="Train on the shapes nearest to the images', of the area of --size, instead of squares."),
        *variation_options(captions=captions),
        click.option("--on-bad", type=Choice(["stop", "skip"]), default="stop", show_default=True,
                     help="Stop at, or skip, unreadable images and lines without a caption."),
        click.option("--on-small", type=Choice(["stop", "skip"]), default="stop", show_default=True,
                     help="Stop at, or skip, images that would be enlarged more than --max-upscale."),
        click.option("--validation", type=click.FloatRange(0, 0.5, min_open=True), callback=finite,
                     help="Share of the images that is held out; the loss of at most 256 of them is logged."),
        click.option("--seed", type=click.IntRange(0, 2**32), default=0, show_default=True,
                     help="Seed of weights, order and noise."),
        click.option("--device", type=Choice(["cpu", "cuda"]), default="cpu", show_default=True,
                     help="Device of the training."),
        click.option("--precision", type=Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True,
                     help="Precision of the networks; weights stay fp32. fp16, with a scaled loss, is for GPUs."),
        click.option("--checkpointing", is_flag=True,
                     help="Compute activations again for the gradient: less memory, a slower step, the same result."),
        click.option("--compile", is_flag=True,
                     help="Compile the networks in their first step, by torch.compile: faster steps, other roundings."),
        click.option("--save-every", type=click.IntRange(min=1), default=500, show_default=True,
                     help="Steps between checkpoints."),
        click.option("--keep", type=click.IntRange(min=1), default=3, show_default=True,
                     help="States kept of the last checkpoints; one that a stop has saved is kept beside them."),
        click.option("--log-every", type=click.IntRange(min=1), default=50, show_default=True,
                     help="Steps between two lines of OUT/log.jsonl."),
        click.option("--tensorboard", is_flag=True, help="Write the log to OUT/tensorboard too."),
        click.option("--wandb", is_flag=True, help="Send the log to Weights & Biases too."),
        click.option("--resume", is_flag=True, help="Continue from the last checkpoint in --out."),
        click.option("--change", multiple=True, metavar="NAME",
                     help="With --resume: use a new value of this setting, such as steps."),
        click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True,
                     help="Processes that share each batch, one for each GPU; accelerate starts them."),
        click.option("--plan", is_flag=True,
                     help="Print the memory that the training will take, and end; nothing is written."),
    ]  # fmt: skip

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_options(**values: Any) -> None:
            training = click.get_current_context().command
            own: dict[str, Any] = {
                "recipe": recipe_of(training, values),
                "task": training.name,
                "differing": differing(training, values),
            }
            given = values if captions else values | NO_WORDING
            names = [field.name for field in fields(Options) if field.name not in OWN]
            common, values = {name: given[name] for name in names}, {n: v for n, v in values.items() if n not in names}
            with joined(common["processes"], common["device"], plan=common["plan"]) as group:
                command(Options(**common, **own, group=group), **values)

        for option in reversed(options):
            with_options = option(with_options)
        return with_options

    return decorate


def prediction_option(*more: str) -> Callable[[F], F]:
    """Make the option of what a U-Net predicts, noise or v, or one of `more`."""
    return click.option("--prediction", type=Choice(["epsilon", "v_prediction", *more]), default="epsilon",
                        show_default=True, help="What the U-Net learns to predict.")  # fmt: skip


def betas_options(command: F) -> F:
    """Add the options of the noise schedule of a training from nothing."""
    for option in (
        click.option("--zero-terminal-snr", is_flag=True,
                     help="Rescale the betas so that the last timestep is noise alone; not with epsilon."),
        click.option("--beta-schedule", type=Choice(["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]),
                     help="How noise grows over the timesteps; scaled_linear in latents by default, "
                          "squaredcos_cap_v2 in pixels."),
    ):  # fmt: skip
        command = option(command)
    return command


def weighting_options(command: F) -> F:
    """Add the options of a denoising loss."""
    for option in (
        click.option("--snr-gamma", type=POSITIVE, callback=finite,
                     help="Min-SNR loss weighting: clamp the signal-to-noise ratio at this; unweighted by default."),
        click.option("--debias", is_flag=True,
                     help="Weight the loss by 1 / sqrt(SNR) for noise, and likewise for other predictions."),
        click.option("--loss", type=Choice(["l2", "huber", "smooth_l1"]), default="l2", show_default=True,
                     help="Squared error, or a pseudo-Huber loss, on which outliers have less influence."),
        click.option("--huber-c", type=RATE, callback=finite, default=0.1, show_default=True,
                     help="Where a Huber loss becomes linear at the last timestep; 1 at the first."),
        click.option("--timesteps", type=Choice(["uniform", "logit_normal", "mode", "importance"]), default="uniform",
                     show_default=True, help="How timesteps are drawn; importance: where the loss was large."),
        click.option("--pyramid-noise", type=RATE, callback=finite,
                     help="Discount of added noise of lower resolutions; none by default."),
        click.option("--offset-noise", type=POSITIVE, callback=finite,
                     help="Standard deviation of a random constant added to each channel's noise; none by default."),
        click.option("--input-perturbation", type=POSITIVE, callback=finite,
                     help="Standard deviation of noise on the input that is not predicted; none by default."),
    ):  # fmt: skip
        command = option(command)
    return command
