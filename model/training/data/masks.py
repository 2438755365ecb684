"""Weight the loss of images by masks: the alpha of each image, or a file of its name in another folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.images.reading import read

from .augmentation import View
from .captioned import ImageFolder, Key, Sample, part
from .metadata import Problem, refuse
from .sources.files import File, to_open

Mask = NDArray[np.float32]
PNG = ".png"


class LossMasks:
    """Reads the masks of a folder's images: 1 where the loss counts, 0 where it does not.

    Masks are cropped and mirrored as their images, and averaged over the area of each latent.
    """

    def __init__(self, images: ImageFolder, folder: Path | None = None) -> None:
        """Take the alpha of the images, or the brightness of the files in a folder.

        Args:
            images: The images; also those of its source that are held out have masks.
            folder: Has files of the images' names, or of these names with the ending .png; None for the alpha.
        """
        self.images, self.folder = images, folder
        self.known: dict[Key, Mask] = {}

    def check(self, images: ImageFolder) -> None:
        """Look for the masks of all images that are not skipped; no image is decoded.

        Raises:
            LdmrtError: An image has none; an `InvalidLines` names each where several have none.
        """
        problems = [
            Problem(row.line, f"{row.file_name} has no mask ({lacking})", row.file_name)
            for row in images.rows
            if row.file_name not in images.skipped and (lacking := self._lacking(row.file_name))
        ]
        if problems:
            raise refuse(images.folder / images.listed, problems, "masks for all images, or no --loss-mask")

    def _lacking(self, name: str) -> str:
        """Say what an image lacks of a mask; nothing where it has one."""
        if self.folder is not None:
            return "" if self._file(name).exists() else f"{self._file(name)} is missing"  # type: ignore[union-attr]
        try:
            with Image.open(to_open(self.images.file(name))) as opened:
                return "" if opened.has_transparency_data else f"no alpha, its mode is {opened.mode}"
        except (OSError, LdmrtError) as error:
            return str(error)

    def _file(self, name: str) -> File:
        """Return the file of an image's mask; where there is none, the one that should be there."""
        if self.folder is None:
            return self.images.file(name)
        same = self.folder / name
        return same if same.exists() else same.with_suffix(PNG)

    def __call__(self, samples: Sequence[Sample], size: Sequence[int]) -> Mask:
        """Return the masks of B samples, (B, 1, h, w), from 0 to 1.

        Args:
            samples: Samples of the images.
            size: Height and width of their latents.

        Raises:
            LdmrtError: A mask cannot be read, or is not as large as its image.
        """
        masks = [self.known[sample.key] if sample.key in self.known else self._read(sample, size) for sample in samples]
        self.known |= {sample.key: mask for sample, mask in zip(samples, masks, strict=True) if not sample.once}
        return np.stack(masks)[:, None]

    def _read(self, sample: Sample, size: Sequence[int]) -> Mask:
        """Read the mask of one sample, (h, w)."""
        name, *view = sample.key
        file = self._file(str(name))
        mask = read("data", to_open(file), animated=False)
        expected = self.images.shapes.get(str(name), mask.size)
        if mask.size != expected:
            sides = ["{}x{}".format(*each) for each in (expected, mask.size)]
            raise LdmrtError("data", f"{file} is not as large as its image", expected=sides[0], found=sides[1])
        plane = mask.getchannel("A") if self.folder is None else mask.convert("L")
        shown = View.of(view)
        cropped = part(plane, self.images.shape_of(sample), shown).convert("F")
        averaged = np.asarray(cropped.resize((size[1], size[0]), Image.Resampling.BOX)) / np.float32(255)
        return np.ascontiguousarray(averaged[:, ::-1] if shown.mirrored else averaged)
