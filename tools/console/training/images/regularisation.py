"""Define the options of regularisation images, and open these."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.progress import console
from ldmrt.tools.console.training.data import open_folder
from ldmrt.tools.console.training.options import POSITIVE, Options, finite

if TYPE_CHECKING:
    from ldmrt.model.training.data.captioned import Captioned
    from ldmrt.model.training.data.regularisation import Regularisation

F = TypeVar("F", bound=Callable[..., object])
WEIGHT = 1.0
PROMPT = "--regularisation-prompt"


def regularisation_options(command: F) -> F:
    """Add the options of regularisation images; the command takes them as `Regularising.of` reads them."""
    for option in (
        click.option(PROMPT, metavar="TEXT", help="Caption of regularisation images without a text beside them."),
        click.option("--regularisation-weight", type=POSITIVE, callback=finite, default=WEIGHT, show_default=True,
                     help="By what the loss of regularisation images is multiplied."),
        click.option("--regularisation", metavar="FOLDER", type=click.Path(path_type=Path),
                     help="Images that the model shall draw as before: as many are learned in each step."),
    ):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True)
class Regularising:
    """Holds the values of these options."""

    folder: Path
    weight: float
    prompt: str | None

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Regularising | None":
        """Take the values out of those of a command; None where there is no folder.

        Raises:
            LdmrtError: Options are given that need a folder.
        """
        folder, weight, prompt = (values.pop(f"regularisation{name}") for name in ("", "_weight", "_prompt"))
        if folder is not None:
            return cls(folder, weight, prompt)
        needless = [PROMPT] * (prompt is not None)
        needless += ["--regularisation-weight"] * (weight != WEIGHT)
        if needless:
            hint = f"--regularisation FOLDER, or no {needless[0]}"
            raise LdmrtError("train", f"{needless[0]} needs --regularisation", hint=hint)
        return None

    def open(self, options: Options, data: "Captioned") -> "Regularisation":
        """Read every caption and decode every image; of several processes the first does it.

        Captions are varied as those of the training, but have no prefix: it is for what is learned anew.

        Args:
            options: Those of all trainings.
            data: The images to train on, whose shapes the others get.

        Raises:
            LdmrtError: There are none, or some of them cannot be used.
        """
        return options.once(lambda: self._open(options, data))

    def _open(self, options: Options, data: "Captioned") -> "Regularisation":
        """See `open`."""
        from ldmrt.model.training.data.buckets import BucketedImages
        from ldmrt.model.training.data.regularisation import Regularisation

        shapes = [shape for shape, _ in data.groups] if isinstance(data, BucketedImages) else ()
        try:
            images = open_folder(
                self.folder, options.size, skip_bad=options.on_bad == "skip", skip_small=options.on_small == "skip",
                prompt=self.prompt, column=options.caption_column, shapes=shapes, empty=options.empty == "allow",
                max_upscale=options.max_upscale,
            )  # fmt: skip
        except LdmrtError as error:
            raise _renamed(error) from None
        if (count := len(images)) < options.batch:
            few = f"{count} regularisation images for batches of {options.batch}: a batch repeats some of them"
            console.print(few, highlight=False)
        wording = replace(options.wording(), prefix="")
        return Regularisation(replace(images, augmentation=options.augmentation(), wording=wording), self.weight)


def shaped(regularisation: "Regularisation | None") -> dict[str, object]:
    """Return what a resumed run must have in common with the saved one; None as in runs older than the options."""
    digest, weight = (None, None) if regularisation is None else (regularisation.images.digest, regularisation.weight)
    return {"regularisation": digest, "regularisation_weight": weight}


def _renamed(error: LdmrtError) -> LdmrtError:
    """Let an error name the option of these images' captions, in the place of that of the others."""
    error.args = tuple(str(text).replace("--prompt", PROMPT) for text in error.args)
    return error
