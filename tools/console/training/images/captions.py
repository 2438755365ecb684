"""Report captions that a text encoder does not read to their end, and read classes beside the captions."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.tools.console.progress import console
from ldmrt.tools.console.training.options import Options

if TYPE_CHECKING:
    from ldmrt.model.training.data.captioned import Captioned
    from ldmrt.model.training.tasks.classes import Classes
    from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

BLOCK = 4096  # captions that are counted at once


def report_long(data: "Captioned", tokenizers: "Mapping[str, Tokenizer]") -> None:
    """Count the captions of the user's images that are longer than a text encoder, and say so once for each encoder.

    The warnings that quote the end of each are off until the command ends.
    """
    from ldmrt.model.training.data.buckets import BucketedImages
    from ldmrt.model.training.data.captioned import ImageFolder

    images = data.images if isinstance(data, BucketedImages) else data
    if not isinstance(images, ImageFolder):
        return
    texts = list(dict.fromkeys(images.wording.longest(text) for row in images.rows for text in row.texts))
    for name, tokenizer in tokenizers.items():
        parts = (texts[i : i + BLOCK] for i in range(0, len(texts), BLOCK))
        if long := sum(count > tokenizer.length for part in parts for count in tokenizer.lengths(part)):
            more = f"{long} of {len(texts)} captions have more than {tokenizer.length - 2} tokens"
            console.print(f"{more}, which {name} reads; the rest is cut", highlight=False)
    click.get_current_context().with_resource(_quiet())


def classes_beside(options: Options, column: str, *images: "Captioned | None") -> "Classes":
    """Read the classes that images have beside their captions, and print them.

    Args:
        options: Those of all trainings.
        column: The column of the classes.
        images: Those to train on first; None for none.

    Raises:
        LdmrtError: An image has no class, or the images are not the user's own.
    """
    from ldmrt.model.training.data.buckets import BucketedImages
    from ldmrt.model.training.data.captioned import ImageFolder
    from ldmrt.model.training.tasks.classes import classes_of_column

    squares = [each.images if isinstance(each, BucketedImages) else each for each in images]
    folders = [each for each in squares if isinstance(each, ImageFolder)]
    if not folders:
        raise LdmrtError("train", "--class-column is for images of your own", hint="no --class-column")
    classes = classes_of_column(folders, column)
    report_classes(options, classes)
    return classes


def report_classes(options: Options, classes: "Classes") -> None:
    """Print the names of the classes, in the order of their numbers."""
    listed = f"{len(classes.names)} classes, from 0: {', '.join(classes.names)}"
    options.once(lambda: console.print(listed, highlight=False, markup=False, soft_wrap=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore the tokenizer's warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "tokenizer: prompt has", LdmrtWarning)
        yield
