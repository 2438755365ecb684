"""Define the options of how a training's images and captions vary from sample to sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.options.common import Choice

if TYPE_CHECKING:
    from ldmrt.model.training.data.augmentation import Augmentation
    from ldmrt.model.training.data.wording import Wording

V = TypeVar("V", "float | None", "tuple[float, ...]")
NO_WORDING = {"shuffle_tags": False, "keep_tags": 0, "prefix": "", "wildcards": False}  # of trainings without captions
ENLARGED = 2.0  # how many times an image may be enlarged, by default


def finite(ctx: click.Context, option: click.Parameter, value: V) -> V:
    """Refuse NaN, which click's ranges accept, in a number or in several."""
    values = value if isinstance(value, tuple) else (value or 0.0,)
    if not all(map(math.isfinite, values)):
        raise click.BadParameter("not a number")
    return value


FLIP = click.option("--flip", is_flag=True, help="Mirror every second image by chance, left to right.")
EMPTY = click.option("--empty", type=Choice(["refuse", "allow"]), default="refuse", show_default=True,
                     help="Whether captions may be empty, or missing where there is no metadata.")  # fmt: skip
MAX_UPSCALE = click.option("--max-upscale", type=click.FloatRange(1, 100), default=ENLARGED, show_default=True,
                           callback=finite, help="How many times an image may be enlarged.")  # fmt: skip


@dataclass(frozen=True)
class Variation:
    """Holds the values of these options."""

    flip: bool
    random_crop: bool
    shuffle_tags: bool
    keep_tags: int
    prefix: str
    wildcards: bool
    empty: str
    max_upscale: float

    @property
    def varied(self) -> dict[str, object]:
        """The values that samples depend on, by name; None for a default, as in runs that are older than the option."""
        values = {
            "flip": self.flip, "random_crop": self.random_crop, "shuffle_tags": self.shuffle_tags,
            "keep_tags": self.keep_tags, "prefix": self.prefix, "wildcards": self.wildcards,
        }  # fmt: skip
        return {name: value or None for name, value in values.items()}

    def augmentation(self) -> "Augmentation":
        """Return what is drawn by chance of each image."""
        from ldmrt.model.training.data.augmentation import Augmentation

        return Augmentation(self.flip, self.random_crop)

    def wording(self) -> "Wording":
        """Return how captions are changed.

        Raises:
            LdmrtError: Tags are to be kept, and none are shuffled.
        """
        from ldmrt.model.training.data.wording import Wording

        if self.keep_tags and not self.shuffle_tags:
            raise LdmrtError("train", "--keep-tags needs --shuffle-tags", hint="--shuffle-tags, or no --keep-tags")
        return Wording(self.shuffle_tags, self.keep_tags, self.prefix, self.wildcards)


def variation_options(*, captions: bool) -> list[Callable[[Any], Any]]:
    """Return the options, in the order of the help; those of captions only where a training reads captions as texts."""
    wording = [
        click.option(
            "--shuffle-tags",
            is_flag=True,
            help="Put the tags of a caption, which commas separate, in another order for each sample.",
        ),
        click.option(
            "--keep-tags",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="With --shuffle-tags: tags at the beginning that stay there.",
        ),
        click.option("--prefix", default="", help="Words before each caption; none by default."),
        click.option("--wildcards", is_flag=True, help="Take one of {red|green} in a caption for each sample."),
    ]
    return [
        FLIP,
        click.option("--random-crop", is_flag=True,
                     help="Crop each image at a place of chance, instead of its centre."),
        *(wording if captions else []),
        EMPTY,
        MAX_UPSCALE,
    ]  # fmt: skip
