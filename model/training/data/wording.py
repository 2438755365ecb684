"""Choose the words of a sample's caption: alternatives, the order of tags, and what precedes it."""

import re
from dataclasses import dataclass

from .sample_random import sample_generator

ALTERNATIVES = re.compile(r"\{([^{}|]*(?:\|[^{}|]*)+)\}")  # {red|green}


@dataclass(frozen=True)
class Wording:
    """States how captions are changed; by default they are not.

    Attributes:
        shuffle: Whether tags, which are separated by commas, come in another order for each sample.
        keep: How many tags at the beginning stay where they are.
        prefix: Words before each caption, after a space.
        wildcards: Whether one of the alternatives in `{red|green}` is taken.
    """

    shuffle: bool = False
    keep: int = 0
    prefix: str = ""
    wildcards: bool = False

    def longest(self, caption: str) -> str:
        """Return a caption with the prefix, and the longest of its alternatives in each place."""
        while self.wildcards and (found := ALTERNATIVES.search(caption)):
            caption = caption[: found.start()] + max(found[1].split("|"), key=len) + caption[found.end() :]
        return self._prefixed(caption)

    def __call__(self, caption: str, seed: int, index: int) -> str:
        """Return the caption of sample `index` of the stream that `seed` names."""
        if self.wildcards:
            draw = sample_generator(seed, index, "wildcards")
            while found := ALTERNATIVES.search(caption):
                words = found[1].split("|")
                caption = caption[: found.start()] + words[draw.integers(len(words))] + caption[found.end() :]
        if self.shuffle:
            tags = [tag for tag in map(str.strip, caption.split(",")) if tag]
            order = sample_generator(seed, index, "tags").permutation(len(tags[self.keep :]))
            caption = ", ".join(tags[: self.keep] + [tags[self.keep + place] for place in order])
        return self._prefixed(caption)

    def _prefixed(self, caption: str) -> str:
        """Put the prefix before a caption."""
        return f"{self.prefix} {caption}".strip() if self.prefix else caption
