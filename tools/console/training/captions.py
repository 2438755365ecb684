"""Report captions that a text encoder does not read to their end."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from ldmrt.runtime.errors import LdmrtWarning
from ldmrt.tools.console.progress import console

if TYPE_CHECKING:
    from ldmrt.model.training.data.captioned import Captioned
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore the tokenizer's warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "tokenizer: prompt has", LdmrtWarning)
        yield
