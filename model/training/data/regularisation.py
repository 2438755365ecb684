"""Stream regularisation images: what a model shall draw as before while it learns from other images.

Prior preservation (Ruiz et al. 2022, arXiv:2208.12242, section 3.2): a model that learns the dog of a few images draws
other dogs as it did, where images of dogs that it drew itself are learned beside those few.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from .captioned import ImageFolder, Sample
from .order import WORD

REGULARISATION = "regularisation"  # begins the keys of the samples, and names the part of the loss


@dataclass(frozen=True)
class Regularisation:
    """Gives each sample of a training a regularisation image beside it, and says how much these count.

    Attributes:
        images: The images, with the size of the training's.
        weight: By what their loss is multiplied before it is added.
    """

    images: ImageFolder
    weight: float = 1.0

    def beside(self, sample: Sample, seed: int, index: int) -> Sample:
        """Return sample `index` of these images' own stream, in an order of its own that `seed` names.

        Its image has the shape of `sample`, which it is learned beside; so have the images of a batch.
        """
        shape = self.images.shape_of(sample)
        own = self.images.shaped(shape, seed ^ WORD, index)
        return replace(own, key=(REGULARISATION, "{}x{}".format(*shape), *own.key))

    def fingerprint(self, sample: Sample) -> str:
        """Return a hash of all that the pixels of a sample's image depend on, see `ImageFolder.fingerprint`."""
        return self.images.fingerprint(replace(sample, key=sample.key[2:]))


class Fingerprinted(Protocol):
    """Names the images of its samples by all that their pixels depend on."""

    def fingerprint(self, sample: Sample) -> str:
        """Return a hash."""


def fingerprints(data: Fingerprinted, regularisation: Regularisation | None) -> Callable[[Sample], str]:
    """Return the fingerprint of samples of a training, and of the regularisation images beside them.

    An image that is among both has one fingerprint.
    """

    def fingerprint(sample: Sample) -> str:
        if regularisation is not None and is_regularisation(sample):
            return regularisation.fingerprint(sample)
        return data.fingerprint(sample)

    return fingerprint


def is_regularisation(sample: Sample) -> bool:
    """Tell whether a sample is one that `Regularisation.beside` returned."""
    return sample.key[:1] == (REGULARISATION,)
