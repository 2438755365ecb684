"""Open the checkpoint that a training starts from, and what it learns from."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.drawing.images import grid, save_png
from ldmrt.tools.options.checkpoint import BASE, base_of

from .checks import check_own_size, check_size, digest_of
from .images.captions import report_long
from .images.regularisation import Regularising, shaped
from .latents import Latents, latent_options
from .options import Options, finite, weighting_options
from .run import run_training

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ldmrt.model.checkpoint.checkpoint import Checkpoint
    from ldmrt.model.training.data.buckets import BucketedImages
    from ldmrt.model.training.data.captioned import ImageFolder, Sample
    from ldmrt.model.training.data.masks import LossMasks
    from ldmrt.model.training.data.regularisation import Regularisation
    from ldmrt.model.training.diffusion.objective import Objective
    from ldmrt.model.training.latents import FirstStage, LatentCache
    from ldmrt.model.training.loop.settings import Settings
    from ldmrt.model.training.loop.task import TrainingTask
    from ldmrt.model.training.tasks.beside import Beside
    from ldmrt.model.training.tasks.finetune import Denoiser
    from ldmrt.tools.emoji.dataset import Emoji

F = TypeVar("F", bound=Callable[..., object])
GUIDANCE = 5.0  # of previews


def base_options(command: F) -> F:
    """Add the options of a training that starts from a checkpoint; the command takes them by `Base.open`'s names."""
    for option in reversed([
        click.option("--from", "source", required=True, metavar="CHECKPOINT",
                     help="The model to start from: a folder, a single file, or OWNER/NAME on the hub."),
        *BASE,
        click.option("--train-text-encoder", is_flag=True, help="Train the text encoders too."),
        click.option("--caption-dropout", type=click.FloatRange(0, 1), default=0.1, show_default=True,
                     callback=finite, help="Share of captions that are left out, for guidance."),
        click.option("--previews", type=click.IntRange(min=0), default=4, show_default=True,
                     help="Images that are drawn of captions at each checkpoint."),
        weighting_options,
        latent_options,
    ]):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True)
class Base:
    """Holds a checkpoint that is trained further, and what it learns from.

    Attributes:
        checkpoint: As it was read.
        denoiser: Its U-Net and its text encoders; what does not learn is frozen.
        vae: Its autoencoder.
        data: The images to train on.
        held: Those that are held out; None for none.
        objective: What the U-Net predicts.
        dropout: The share of captions that are left out.
        prompts: What previews are drawn of.
        cache: Keeps the moments of latents.
        masks: Weight the loss of each latent; None for alike.
        about: What a resumed run must have in common with the saved one.
        regularisation: Images that are learned beside the others; None for none.
    """

    checkpoint: "Checkpoint"
    denoiser: "Denoiser"
    vae: "FirstStage"
    data: "ImageFolder | BucketedImages | Emoji"
    held: "ImageFolder | BucketedImages | None"
    objective: "Objective"
    dropout: float
    prompts: list[str]
    cache: "LatentCache"
    masks: "LossMasks | None"
    about: dict[str, object]
    regularisation: "Regularisation | None" = None

    @classmethod
    def open(
        cls,
        options: Options,
        source: str,
        *,
        train_text_encoder: bool,
        caption_dropout: float,
        previews: int,
        adapt: "Callable[[Checkpoint], Checkpoint] | None" = None,
        gives: Collection[str] = (),
        regularising: Regularising | None = None,
        **values: Any,
    ) -> "Base":
        """Read the checkpoint, and open the images at a size that it can be trained at.

        Args:
            options: Those of all trainings.
            source: A folder, a single file, or OWNER/NAME on the hub.
            train_text_encoder: Whether the text encoders learn; otherwise they are frozen.
            caption_dropout: The share of captions that are left out.
            previews: How many images are drawn at each checkpoint.
            adapt: Changes the checkpoint before it is trained; None leaves it as it is.
            gives: Kinds of sources that the task gives the U-Net, beside what a captioned image gives.
            regularising: Says which regularisation images there are; None for none.
            values: Those of the checkpoint, see `base_of`, of the latents, see `Latents`, and how the loss is weighted,
                see `Objective.of`.

        Raises:
            LdmrtError: The checkpoint cannot be read or trained, or not at this size.
        """
        import torch

        from ldmrt.model.networks.autoencoder import Autoencoder
        from ldmrt.model.networks.vq_autoencoder import VQAutoencoder
        from ldmrt.model.training.diffusion.objective import Objective
        from ldmrt.model.training.tasks.finetune import Denoiser

        if Path(source).resolve() == options.out.resolve():
            raise LdmrtError("train", "--out is the checkpoint that --from names", hint="another --out")
        latents = Latents.of(
            **{field: values.pop(field) for field in ("cache", "cache_folder", "latents", "loss_mask")}
        )
        checkpoint, _ = base_of(source, values).load({"": torch.float32})
        checkpoint = checkpoint if adapt is None else adapt(checkpoint)
        objective = Objective.of(checkpoint.scheduler, options.device, **values)
        denoiser = Denoiser.of(checkpoint, train_text_encoders=train_text_encoder, gives=gives)
        vae, unet, size = checkpoint.vae, denoiser.unet, options.size
        assert isinstance(vae, (Autoencoder, VQAutoencoder))  # `Denoiser.of` refuses others
        if isinstance(side := unet.config.sample_size, int):
            check_own_size(size, side * vae.config.factor)
        check_size(size, vae.config)
        data, held = options.open_data(vae.config.factor * 2 ** (len(unet.config.block_out_channels) - 1))
        regularisation = None if regularising is None else regularising.open(options, data)
        digest, vae = digest_of(vae), vae.to(options.device)
        about = {
            "size": size, "data": data.digest, "validation": options.validation, "model": digest_of(denoiser),
            "autoencoder": digest, "prediction": objective.prediction,
            "train_text_encoder": train_text_encoder, "caption_dropout": caption_dropout, **values, **options.shaped,
            **latents.shaped, **shaped(regularisation),
        }  # fmt: skip
        unet.config = replace(unet.config, sample_size=size // vae.config.factor)
        prompts = [data.caption(options.seed + 1, i) for i in range(previews)]
        cache, masks = latents.open(options, data, vae, digest, regularisation), latents.masks(data, held)
        return cls(
            checkpoint, denoiser, vae, data, held, objective, caption_dropout, prompts, cache, masks, about,
            regularisation,
        )  # fmt: skip

    def examples(self, seed: int) -> "list[Sample]":
        """Return as many samples as there are previews, whose images are squares."""
        from ldmrt.model.training.data.buckets import BucketedImages

        squares = self.data.images if isinstance(self.data, BucketedImages) else self.data
        return [squares.draw(seed + 1, i) for i in range(len(self.prompts))]

    def task(self, beside: "Beside | None" = None) -> "TrainingTask":
        """Return the task: the denoising loss of captioned images.

        Args:
            beside: Makes the channels that the U-Net reads beside its state; None for none.
        """
        from ldmrt.model.training.tasks.finetune import Conditions, conditioned_task, encoders_of
        from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

        files = self.checkpoint.tokenizers
        tokenizers = {
            name: Tokenizer(files[name.replace("text_encoder", "tokenizer")]) for name in encoders_of(self.denoiser)
        }
        report_long(self.data, tokenizers)
        if self.regularisation is not None:
            report_long(self.regularisation.images, tokenizers)
        conditions = Conditions.of(self.checkpoint.stage, self.dropout)
        return conditioned_task(
            self.denoiser, self.data, self.vae, tokenizers, self.objective, conditions, beside, self.cache, self.masks,
            regularisation=self.regularisation,
        )  # fmt: skip

    def checkpoint_of(self, networks: "Denoiser") -> "Checkpoint":
        """Return the checkpoint with other weights, on the CPU.

        Args:
            networks: A copy of `denoiser`, on the CPU.
        """
        import copy

        from ldmrt.model.checkpoint.checkpoint import is_text_encoder
        from ldmrt.model.training.tasks.finetune import encoders_of

        encoders = {name: one for name, one in encoders_of(networks).items() if is_text_encoder(one)}
        vae = copy.deepcopy(self.vae).cpu()
        return replace(self.checkpoint, denoiser=networks.unet, vae=vae, text_encoders=encoders)

    def train(
        self,
        options: Options,
        settings: "Settings",
        name: str,
        more: Mapping[str, object] | None = None,
        beside: "Beside | None" = None,
        **given: Any,
    ) -> None:
        """Train the networks, and write the whole checkpoint with each saved state.

        Args:
            options: Those of all trainings.
            settings: Those of the run.
            name: The training's, which begins the names of the previews.
            more: What a resumed run must have in common with the saved one, beside `about`.
            beside: Makes the channels that the U-Net reads beside its state; None for none.
            given: What previews are given, see `preview`.
        """
        from ldmrt.model.training.loop.run import Run

        run = Run(self.denoiser, settings, {"task": name, **(more or {}), **self.about})

        def keep() -> None:
            made = self.checkpoint_of(run.averaged().cpu())
            self.preview(made, options.out / "training" / f"{name}-{run.step:06d}.png", **given)
            made.save(options.out)

        run_training(run, self.task(beside), options, keep, self.held)

    def preview(
        self, checkpoint: "Checkpoint", path: Path, above: "NDArray[np.uint8] | None" = None, **given: Any
    ) -> None:
        """Draw the prompts with a checkpoint into one image; nothing where there are none.

        Args:
            checkpoint: The checkpoint, on the CPU.
            path: The PNG.
            above: Images that stand above those of the prompts; None for none.
            given: What else the pipeline is given, one for each prompt.
        """
        import numpy as np

        from ldmrt.export.components.torch_pipeline import torch_pipeline

        if self.prompts:
            pictures = torch_pipeline(checkpoint)(self.prompts, guidance_scale=GUIDANCE, **given).pixels
            columns = min(8, len(pictures)) if above is None else len(pictures)
            shown = pictures if above is None else np.concatenate([above, pictures])
            save_png(path, grid(shown, columns), {"prompts": self.prompts})
