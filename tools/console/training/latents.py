"""Define the options of trainings in latents: what keeps the latents, and where their loss counts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.common import Choice

from .options import Options

if TYPE_CHECKING:
    from ldmrt.model.training.data.masks import LossMasks
    from ldmrt.model.training.data.regularisation import Regularisation
    from ldmrt.model.training.latents import FirstStage, LatentCache

F = TypeVar("F", bound=Callable[..., object])
ALPHA = "alpha"
FOLDER = "latents"  # of a run


def latent_options(command: F) -> F:
    """Add the options of the latents; the command takes them by the names of `Latents`."""
    for option in (
        click.option("--loss-mask", metavar="alpha|FOLDER",
                     help="Weight the loss by the images' alpha, or by the files of their names in a folder."),
        click.option("--latents", type=Choice(["fp32", "fp16"]), default="fp32", show_default=True,
                     help="Precision that latents are rounded to."),
        click.option("--cache-folder", type=Output(folder=True), metavar="FOLDER",
                     help="With --cache disk: a folder that runs share; OUT/latents by default."),
        click.option("--cache", type=Choice(["memory", "disk", "none"]), default="memory", show_default=True,
                     help="Where latents are kept, so that each image is encoded once."),
    ):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True)
class Latents:
    """Holds the values of the options of the latents."""

    cache: str
    cache_folder: Path | None
    latents: str
    loss_mask: str | None

    @classmethod
    def of(cls, *, cache: str, cache_folder: Path | None, latents: str, loss_mask: str | None) -> "Latents":
        """Take the values.

        Raises:
            LdmrtError: There is a folder, and no cache on the disk; or no folder of masks.
        """
        if cache_folder is not None and cache != "disk":
            raise LdmrtError("train", "--cache-folder needs --cache disk", hint="--cache disk, or no --cache-folder")
        if loss_mask not in (None, ALPHA) and not Path(loss_mask).is_dir():
            raise LdmrtError("train", "no folder of masks", expected="--loss-mask alpha, or a folder", found=loss_mask)
        return cls(cache, cache_folder, latents, loss_mask)

    @property
    def shaped(self) -> dict[str, object]:
        """What a resumed run must have in common with the saved one."""
        mask = self.loss_mask if self.loss_mask in (None, ALPHA) else "folder"
        return {"latents": self.latents, "loss_mask": mask}

    def check_unused(self) -> None:
        """Refuse options of latents in a training that has none.

        Raises:
            LdmrtError: Names the option.
        """
        for name, default in (("cache", "memory"), ("latents", "fp32")):
            if getattr(self, name) != default:
                problem = f"--{name} is for trainings in latents"
                raise LdmrtError("train", problem, hint=f"--autoencoder, or no --{name}")

    def masks(self, *images: object) -> "LossMasks | None":
        """Find the masks of all images, those to train on first; None where no mask is asked for.

        Raises:
            LdmrtError: An image has no mask.
        """
        from ldmrt.model.training.data.buckets import BucketedImages
        from ldmrt.model.training.data.captioned import ImageFolder
        from ldmrt.model.training.data.masks import LossMasks

        if self.loss_mask is None:
            return None
        squares = [each.images if isinstance(each, BucketedImages) else each for each in images if each is not None]
        folders = [each for each in squares if isinstance(each, ImageFolder)]
        if not folders:
            raise LdmrtError("train", "--loss-mask is for images of your own", hint="no --loss-mask")
        masks = LossMasks(folders[0], None if self.loss_mask == ALPHA else Path(self.loss_mask))
        for each in folders:
            masks.check(each)
        return masks

    def open(
        self,
        options: Options,
        data: object,
        vae: "FirstStage",
        digest: str,
        regularisation: "Regularisation | None" = None,
    ) -> "LatentCache":
        """Open the cache; what is in memory alone is written when the command ends.

        Args:
            options: Those of all trainings.
            data: The images.
            vae: The autoencoder, on the device.
            digest: Names its weights.
            regularisation: Images that are learned beside the others; None for none.

        Raises:
            LdmrtError: Latents of such images cannot be kept on the disk.
        """
        import torch

        from ldmrt.model.training.data.buckets import BucketedImages
        from ldmrt.model.training.data.captioned import ImageFolder
        from ldmrt.model.training.data.regularisation import fingerprints
        from ldmrt.model.training.latent_files import SHARD, LatentFiles
        from ldmrt.model.training.latents import LatentCache

        dtype = torch.float16 if self.latents == "fp16" else torch.float32
        if self.cache == "none":
            return LatentCache(vae, options.device, dtype=dtype, entries=0)
        if self.cache == "memory":
            return LatentCache(vae, options.device, dtype=dtype)
        if not isinstance(data, (ImageFolder, BucketedImages)):
            raise LdmrtError("train", "--cache disk is for images of your own", hint="--cache memory")
        if options.plan:  # no file is read or written: as many are in memory as wait for one, and on a GPU none
            side = options.size // vae.config.factor
            waiting = SHARD // (2 * vae.config.latent_width * side**2 * dtype.itemsize)
            return LatentCache(vae, options.device, dtype=dtype, entries=waiting if options.device == "cpu" else 0)
        folder = self.cache_folder or options.out / FOLDER
        files = LatentFiles(folder, f"{digest}-{options.device}-{self.latents}")
        click.get_current_context().call_on_close(files.write)
        named = fingerprints(data, regularisation)
        return LatentCache(vae, options.device, dtype=dtype, files=files, fingerprint=named)
