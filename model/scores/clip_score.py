"""Compute the CLIP score of images and their captions (Hessel et al. 2021, arXiv:2104.08718)."""

import numpy as np
from numpy.typing import ArrayLike

from ldmrt.runtime.errors import LdmrtError

from .distances import both_of


def clip_score(images: ArrayLike, captions: ArrayLike) -> float:
    """Return 100 times the mean cosine between images and their captions, and 0 where that is below 0.

    Args:
        images: CLIP's features of images, (N, d).
        captions: CLIP's features of the caption of each, (N, d).

    Raises:
        LdmrtError: There are none, their numbers differ, or some are not finite or 0 alone.
    """
    a, b = both_of(images, captions, least=1)
    if len(a) != len(b):
        raise LdmrtError("scores", "each image needs a caption", expected=len(a), found=len(b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    if not lengths.all():
        raise LdmrtError("scores", "features are 0, so that they have no direction", found=int((lengths == 0).sum()))
    return max(0.0, float(100 * ((a * b).sum(axis=1) / lengths).mean()))
