"""Build the networks of an autoencoder's training from its options, and measure what it has learned."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.options.common import Choice

from .checks import check_own_size, digest_of
from .options import POSITIVE, finite

if TYPE_CHECKING:
    from torch import Tensor

    from ldmrt.model.networks.autoencoder import Autoencoder
    from ldmrt.model.networks.vq_autoencoder import VQAutoencoder
    from ldmrt.model.training.data.buckets import BucketedImages
    from ldmrt.model.training.data.captioned import ImageFolder
    from ldmrt.model.training.first_stage.discriminator import Discriminator
    from ldmrt.model.training.first_stage.perceptual import Lpips
    from ldmrt.model.training.first_stage.quantise import Codebook
    from ldmrt.model.training.tasks.autoencoder import Parts

F = TypeVar("F", bound=Callable[..., object])
DISCRIMINATOR = "discriminator"  # of --perceptual: its features instead of a file's
LEARNED = "learned"  # of --log-variance
MOST = 256  # images of a report
WEIGHT = click.FloatRange(0, 1e6)
OF_LATENTS = {"kl_weight": 1e-6, "codes": 1024, "codebook": "gradient", "commitment": 0.25}  # options, and defaults


def first_stage_options(command: F) -> F:
    """Add the options of an autoencoder's loss; the command takes them by the names of `FirstStage`."""
    for option in reversed([
        click.option("--decoder-of", type=click.Path(path_type=Path), metavar="FOLDER",
                     help="A folder with vae/, whose decoder alone is trained: its latents stay."),
        click.option("--kind", type=Choice(["kl", "vq"]), default="kl", show_default=True,
                     help="Latents from a normal distribution, or vectors of a codebook."),
        click.option("--reconstruction", type=Choice(["l1", "l2"]), default="l2", show_default=True,
                     help="Absolute or squared error."),
        click.option("--sum", "summed", is_flag=True, help="Sum losses over an image, instead of their means."),
        click.option("--log-variance", default="0", show_default=True, metavar="NUMBER|learned",
                     help="s of the reconstruction's loss / exp(s) + s."),
        click.option("--kl-weight", type=WEIGHT, default=OF_LATENTS["kl_weight"], show_default=True,
                     callback=finite, help="Weight of the KL."),
        click.option("--perceptual", metavar="FILE|discriminator",
                     help="Weights of LPIPS as safetensors, or the discriminator's features."),
        click.option("--perceptual-weight", type=WEIGHT, default=1.0, show_default=True, callback=finite,
                     help="Weight of the perceptual distance."),
        click.option("--adversarial", type=WEIGHT, default=0.0, show_default=True, callback=finite,
                     help="Weight of the adversarial part, beside its adaptive one; 0 for none."),
        click.option("--discriminator-start", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Step after which the adversarial part begins."),
        click.option("--discriminator-loss", type=Choice(["hinge", "vanilla"]), default="hinge", show_default=True,
                     help="Loss of the discriminator."),
        click.option("--discriminator-layers", type=click.IntRange(1, 8), default=3, show_default=True,
                     help="Layers of the discriminator that halve the size, and one more."),
        click.option("--codes", type=click.IntRange(2, 1 << 20), default=OF_LATENTS["codes"],
                     show_default=True, help="Vectors of the codebook."),
        click.option("--codebook", type=Choice(["gradient", "average"]), default=OF_LATENTS["codebook"],
                     show_default=True, help="How the codebook learns."),
        click.option("--commitment", type=POSITIVE, default=OF_LATENTS["commitment"], show_default=True,
                     callback=finite, help="Weight of the latents' distance to their codes."),
    ]):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True)
class FirstStage:
    """Holds the options of an autoencoder's loss, and of the network."""

    decoder_of: Path | None
    kind: str
    reconstruction: str
    summed: bool
    log_variance: str
    kl_weight: float
    perceptual: str | None
    perceptual_weight: float
    adversarial: float
    discriminator_start: int
    discriminator_loss: str
    discriminator_layers: int
    codes: int
    codebook: str
    commitment: float

    def parts(self) -> "Parts":
        """Return what the loss is made of.

        Raises:
            LdmrtError: Options contradict each other, or --log-variance is no number.
        """
        from ldmrt.model.training.tasks.autoencoder import Parts

        for name, default in OF_LATENTS.items():
            if self.decoder_of is not None and getattr(self, name) != default:
                option = f"--{name.replace('_', '-')}"
                problem = f"{option} is about latents, which stay with --decoder-of"
                raise LdmrtError("train", problem, hint=f"no {option}")
        if self.perceptual == DISCRIMINATOR and not self.adversarial:
            hint = "--adversarial 0.5"
            raise LdmrtError("train", "--perceptual discriminator needs a discriminator that learns", hint=hint)
        try:
            s = None if self.log_variance == LEARNED else float(self.log_variance)
        except ValueError:
            s = float("nan")
        if s is not None and not -50 <= s <= 50:
            expected = "a number from -50 to 50, or learned"
            raise LdmrtError("train", "invalid --log-variance", expected=expected, found=self.log_variance)
        weight = self.perceptual_weight if self.perceptual else 0.0
        return Parts(
            self.reconstruction, self.summed, s, weight, self.adversarial, self.discriminator_start,
            self.discriminator_loss, self.kl_weight, self.commitment,
        )  # fmt: skip

    def about(self, network: "Autoencoder | VQAutoencoder", perceptual: "Lpips | None") -> dict[str, object]:
        """Return what a resumed run must have in common with the saved one; None for the defaults.

        Args:
            network: The autoencoder, with its first weights.
            perceptual: The network of the perceptual part; None for none.
        """
        named: dict[str, Any] = self.parts().named()
        if self.adversarial:
            named["layers"] = self.discriminator_layers
        if self.kind == "vq":
            named |= {"codes": self.codes, "codebook": self.codebook}
        parts = ", ".join(f"{name} {value}" for name, value in sorted(named.items())) or None
        digest, factor = None, None
        if self.decoder_of is not None:
            digest, factor = digest_of(network), network.config.scaling_factor
        return {
            "kind": None if self.kind == "kl" else self.kind,
            "loss": parts,
            # of files that may have been moved, or changed
            "perceptual_network": digest_of(perceptual) if perceptual is not None else None,
            "decoder_of": digest,
            "scaling_factor": factor,
        }

    def network(self, out: Path, size: int, seed: int) -> "tuple[Autoencoder | VQAutoencoder, Codebook | None]":
        """Build the autoencoder with its first weights, or read it, and what updates its codebook.

        Args:
            out: The folder of the run.
            size: The side of its images in pixels.
            seed: Of the first weights.

        Raises:
            LdmrtError: The autoencoder that is read is missing, damaged, of another kind, in `out`, or for another
                size that nobody asked for.
        """
        network, codebook = self._built(size, seed) if self.decoder_of is None else (self._read(out, size), None)
        if self.log_variance == LEARNED:
            from ldmrt.model.training.tasks.autoencoder import learn_log_variance

            learn_log_variance(network)
        return network, codebook

    def _read(self, out: Path, size: int) -> "Autoencoder | VQAutoencoder":
        """Read the autoencoder whose decoder is trained."""
        from ldmrt.model.checkpoint.load import load_first_stage
        from ldmrt.model.networks.autoencoder import Autoencoder
        from ldmrt.model.training.tasks.autoencoder import freeze_encoder

        assert self.decoder_of is not None
        if self.decoder_of.resolve() == out.resolve():
            raise LdmrtError("train", "--out is the folder that --decoder-of names", hint="another --out")
        network = load_first_stage(self.decoder_of)
        kind = "kl" if isinstance(network, Autoencoder) else "vq"
        if kind != self.kind:
            problem = f"the autoencoder of {self.decoder_of} is of another --kind"
            raise LdmrtError("train", problem, expected=kind, found=self.kind, hint=f"--kind {kind}")
        check_own_size(size, network.config.sample_size)
        freeze_encoder(network)
        return network

    def _built(self, size: int, seed: int) -> "tuple[Autoencoder | VQAutoencoder, Codebook | None]":
        """Build an autoencoder with random weights, and what updates its codebook."""
        import torch
        from torch import nn

        from ldmrt.model.networks.autoencoder import Autoencoder
        from ldmrt.model.networks.vq_autoencoder import VQAutoencoder, VQConfig
        from ldmrt.model.training.first_stage.quantise import Codebook
        from ldmrt.model.training.tasks import presets
        from ldmrt.model.training.tasks.initialise import initialise

        config, codebook = replace(presets.AUTOENCODER, sample_size=size), None
        torch.manual_seed(seed)
        network: Autoencoder | VQAutoencoder
        if self.kind == "kl":
            network = Autoencoder(config)
            initialise(network)
        else:
            names = ("down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "latent_channels")
            shape = {name: getattr(config, name) for name in (*names, "norm_num_groups", "sample_size")}
            network = VQAutoencoder(VQConfig(num_vq_embeddings=self.codes, scaling_factor=1.0, **shape))
            initialise(network)
            nn.init.normal_(network.quantize.embedding.weight)  # as latents are
            codebook = Codebook(network.quantize, seed, averaged=self.codebook == "average")
        return network, codebook

    def opponents(self, seed: int, device: str, side: int) -> "tuple[Discriminator | None, Lpips | None]":
        """Build the discriminator and read the perceptual network, as far as they are asked for.

        Args:
            seed: Of the discriminator's first weights.
            device: Where the perceptual network runs.
            side: The shortest side of the images in pixels.

        Raises:
            LdmrtError: The file of the perceptual network cannot be read, or lacks weights of VGG16 and LPIPS; or
                images are too small for one of them.
        """
        import torch

        from ldmrt.model.training.first_stage.discriminator import Discriminator
        from ldmrt.model.training.first_stage.perceptual import Lpips
        from ldmrt.model.weights.weights import open_weights

        discriminator = perceptual = None
        if self.perceptual and self.perceptual != DISCRIMINATOR:
            opened = open_weights("train", Path(self.perceptual))
            perceptual = Lpips({name: lazy.read() for name, lazy in opened.items()}).to(device)
        if self.adversarial:
            torch.manual_seed(seed)
            discriminator = Discriminator(self.discriminator_layers)
        for option, network in (("--adversarial", discriminator), ("--perceptual", perceptual)):
            if network is not None and side < network.smallest:
                problem, expected = f"images are too small for {option}", f"sides of {network.smallest} pixels"
                fewer = network is discriminator and self.discriminator_layers > 1
                hint = "a larger --size" + ", or fewer --discriminator-layers" * fewer
                raise LdmrtError("train", problem, expected=expected, found=side, hint=hint)
        return discriminator, perceptual


def batches_of(
    held: "ImageFolder | BucketedImages", size: int, device: str, *, skip_unreadable: bool
) -> "Iterator[Tensor]":
    """Yield the squares of held-out images as tensors (B, 3, size, size) in [-1, 1], at most `MOST`."""
    from ldmrt.model.training.data.batches import Batches
    from ldmrt.model.training.data.buckets import BucketedImages
    from ldmrt.model.training.latents import to_tensor

    squares = held.images if isinstance(held, BucketedImages) else held
    count, several = min(MOST, len(squares)), max(1, 8 * 64**2 // size**2)
    loaded = Batches(squares, 0, several, skip_unreadable=skip_unreadable)
    for step in range(-(-count // several)):
        yield to_tensor([sample.image for sample in loaded(step)[: count - step * several]], device)
