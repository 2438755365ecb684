"""Define the options of the latents that a training computes once, and open what keeps them."""

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
    from ldmrt.model.networks.autoencoder import Autoencoder
    from ldmrt.model.training.latents import LatentCache

F = TypeVar("F", bound=Callable[..., object])
FOLDER = "latents"  # of a run


def latent_options(command: F) -> F:
    """Add the options of the latents; the command takes them by the names of `Latents`."""
    for option in (
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

    @classmethod
    def of(cls, *, cache: str, cache_folder: Path | None, latents: str) -> "Latents":
        """Take the values.

        Raises:
            LdmrtError: There is a folder, and no cache on the disk.
        """
        if cache_folder is not None and cache != "disk":
            raise LdmrtError("train", "--cache-folder needs --cache disk", hint="--cache disk, or no --cache-folder")
        return cls(cache, cache_folder, latents)

    @property
    def shaped(self) -> dict[str, object]:
        """What a resumed run must have in common with the saved one."""
        return {"latents": self.latents}

    def open(self, options: Options, data: object, vae: "Autoencoder", digest: str) -> "LatentCache":
        """Open the cache; what is in memory alone is written when the command ends.

        Args:
            options: Those of all trainings.
            data: The images.
            vae: The autoencoder, on the device.
            digest: Names its weights.

        Raises:
            LdmrtError: Latents of such images cannot be kept on the disk.
        """
        import torch

        from ldmrt.model.training.data.buckets import BucketedImages
        from ldmrt.model.training.data.captioned import ImageFolder
        from ldmrt.model.training.latent_files import LatentFiles
        from ldmrt.model.training.latents import LatentCache

        dtype = torch.float16 if self.latents == "fp16" else torch.float32
        if self.cache == "none":
            return LatentCache(vae, options.device, dtype=dtype, entries=0)
        if self.cache == "memory":
            return LatentCache(vae, options.device, dtype=dtype)
        if not isinstance(data, (ImageFolder, BucketedImages)):
            raise LdmrtError("train", "--cache disk is for images of your own", hint="--cache memory")
        folder = self.cache_folder or options.out / FOLDER
        files = LatentFiles(folder, f"{digest}-{options.device}-{self.latents}")
        click.get_current_context().call_on_close(files.write)
        return LatentCache(vae, options.device, dtype=dtype, files=files, fingerprint=data.fingerprint)
