"""Define what a checkpoint of Stable Diffusion learns further: its U-Net, and its text encoders or not."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldmrt.model.checkpoint.checkpoint import Checkpoint, TextEncoder
from ldmrt.model.networks.autoencoder import Autoencoder
from ldmrt.model.networks.ldm_bert import LDMBert
from ldmrt.model.networks.unet import UNet
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder
from ldmrt.model.training.data.captioned import Captioned, Sample, Sizes
from ldmrt.model.training.data.masks import LossMasks
from ldmrt.model.training.data.regularisation import REGULARISATION, Regularisation, is_regularisation
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.latents import FirstStage, LatentCache, sampled
from ldmrt.model.training.loop.task import Losses, TrainingTask
from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.errors import LdmrtError

from .beside import CAPTION_DROPPING, Beside, kept
from .classes import Classes

CAPTION_DROPOUT = 0.1  # Ho & Salimans 2022, arXiv:2207.12598: the share of empty captions that guidance needs
READ = ("state", "timestep", "prompt", "pooled_prompt", "sizes")  # kinds of sources that a caption and an image give
TRAINED_BY = {"mask": "inpaint", "noised_image": "upscale"}  # commands, by a kind of source that tells their models
TEXT_ENCODER = "text_encoder"
Tokenize = Callable[[list[str]], NDArray[np.int64]]  # B captions to token ids (B, length)


class Denoiser(nn.Module):
    """Holds the networks of a training: the U-Net, and the text encoders that condition it."""

    def __init__(self, unet: UNet, text_encoder: "TextEncoder", text_encoder_2: "TextEncoder | None" = None) -> None:
        """Hold all as submodules, so that one optimizer has their weights."""
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        if text_encoder_2 is not None:  # SDXL
            self.text_encoder_2 = text_encoder_2

    def train(self, mode: bool = True) -> "Denoiser":
        """Put the U-Net into train mode; text encoders stay in eval mode, as their dropout would not be a sample's."""
        super().train(mode)
        for encoder in encoders_of(self).values():
            encoder.eval()
        return self

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, *, train_text_encoders: bool = False, gives: Collection[str] = ()
    ) -> "Denoiser":
        """Hold a checkpoint's networks, of which the text encoders learn or are frozen.

        Args:
            checkpoint: The checkpoint.
            train_text_encoders: Whether the text encoders learn.
            gives: Kinds of sources that the task gives the U-Net, beside what a captioned image gives.

        Raises:
            LdmrtError: The U-Net reads more than that.
        """
        check_trainable(checkpoint, gives)
        assert isinstance(checkpoint.unet, UNet)
        denoiser = cls(checkpoint.unet, **checkpoint.text_encoders)
        for encoder in encoders_of(denoiser).values():
            encoder.requires_grad_(train_text_encoders)
        return denoiser


def encoders_of(networks: nn.Module) -> dict[str, nn.Module]:
    """Return the text encoders among submodules, in their order, by their names in a checkpoint."""
    return {name: child for name, child in networks.named_children() if name.startswith(TEXT_ENCODER)}


@dataclass(frozen=True)
class Conditions:
    """States how captions condition a U-Net, as `runtime.pipeline.conditioning.prompts` does it for prompts.

    Attributes:
        xl: The U-Net is SDXL's: it reads the last hidden state but one of all text encoders side by side, the last
            encoder's pooled embedding, and sizes (Podell et al. 2023, arXiv:2307.01952, section 2.2).
        empty_is_zeros: An empty caption is zeros, in the place of its embedding.
        dropout: The share of captions that are left out, for guidance.
    """

    xl: bool = False
    empty_is_zeros: bool = False
    dropout: float = CAPTION_DROPOUT

    @classmethod
    def of(cls, stage: Stage, dropout: float = CAPTION_DROPOUT) -> "Conditions":
        """Return the conditions of a stage, by which images are made."""
        prompt = stage.source("prompt")
        assert prompt is not None  # `check_trainable` refuses others
        return cls(bool(prompt.setting("penultimate")), bool(prompt.setting("zeros")), dropout)

    def __call__(
        self, encoders: Mapping[str, nn.Module], tokenizers: Mapping[str, Tokenize], captions: list[str], device: str
    ) -> tuple[Tensor, Tensor | None]:
        """Encode B captions: the context (B, tokens, width), and the pooled embeddings (B, P) of SDXL."""
        contexts, pooled = list[Tensor](), None
        for name, encoder in encoders.items():
            ids = torch.from_numpy(tokenizers[name](captions)).to(device)
            if isinstance(encoder, LDMBert):
                contexts.append(encoder.model(ids))
                continue
            out = encoder(ids, output_hidden_states=True) if self.xl else encoder(ids)
            contexts.append(out.hidden_states[-2] if self.xl else out.last_hidden_state)
            pooled = out.text_embeds if self.xl and "text_embeds" in out else pooled
        context = torch.cat(contexts, dim=-1)
        if self.empty_is_zeros:
            empty = torch.tensor([not caption for caption in captions], device=device)
            context = context.masked_fill(empty[:, None, None], 0.0)
            pooled = None if pooled is None else pooled.masked_fill(empty[:, None], 0.0)
        return context, pooled


def time_ids(samples: Sequence[Sample], size: tuple[int, int], device: str) -> Tensor:
    """Return SDXL's sizes of B samples, (B, 6): original height and width, crop's top and left, target's size."""
    sizes = [sample.sizes or Sizes(size, (0, 0), size) for sample in samples]
    rows = [[*each.original, *each.crop, *each.target] for each in sizes]
    return torch.tensor(rows, dtype=torch.float32, device=device)


def conditioned_task(
    networks: nn.Module,
    data: Captioned,
    vae: FirstStage,
    tokenizers: Mapping[str, Tokenize],
    objective: Objective,
    conditions: Conditions | None = None,
    beside: Beside | None = None,
    cache: LatentCache | None = None,
    masks: LossMasks | None = None,
    classes: Classes | None = None,
    regularisation: Regularisation | None = None,
) -> TrainingTask:
    """Let a U-Net that reads captions learn by the denoising loss (Ho et al. 2020, equation 14) in images' latents.

    Which weights learn is said by their `requires_grad`.

    Args:
        networks: Has the submodules `unet`, `text_encoder` and perhaps `text_encoder_2`, such as a `Denoiser`.
        data: Captioned images, (H, W, 3) with sides that are multiples of the autoencoder's factor.
        vae: The autoencoder, trained already; it does not change.
        tokenizers: The tokenizer of each text encoder, by the encoder's name.
        objective: What the U-Net predicts; its device is that of all networks.
        conditions: How captions condition the U-Net; None for the last hidden state of one text encoder.
        beside: Makes the channels that the U-Net reads beside the state; None for none.
        cache: Keeps the latents' moments; None for memory.
        masks: Weight the loss of each latent; None for alike.
        classes: The classes that the U-Net is told beside the captions; half of those that are left out are left out
            together with the caption, see `kept`. None for none.
        regularisation: Images that are learned beside the others (Ruiz et al. 2022, arXiv:2208.12242, equation 2);
            None for none.

    Returns:
        The task, whose losses have the part `denoising`, and with regularisation images the part `regularisation`,
        which is multiplied by its weight.
    """
    device, conditions = objective.device, conditions or Conditions()
    cache = cache or LatentCache(vae, device)
    encoders, unet = encoders_of(networks), networks.get_submodule("unet")

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        """Return the losses of the samples, and of the regularisation images beside them, computed in one batch."""
        beside_them = [sample.regularisation for sample in samples if sample.regularisation is not None]
        if regularisation is None or not beside_them:
            return {"denoising": denoising(samples, draws)}
        both = draws.beside(f"{REGULARISATION} ")
        losses = denoising([*samples, *beside_them], both).chunk(2)
        for name, values in both.noted.items():
            draws.noted |= dict(zip((name, f"{name} of {REGULARISATION}"), values.chunk(2), strict=True))
        return {"denoising": losses[0], REGULARISATION: regularisation.weight * losses[1]}

    def denoising(samples: list[Sample], draws: Draws) -> Tensor:
        """Predict the noise of images' latents, each at a timestep of its own; return the losses (B,)."""
        x0 = sampled(cache(samples), vae, draws)
        dropped = draws.chance(CAPTION_DROPPING, conditions.dropout).tolist()
        captions = ["" if drop else s.caption for drop, s in zip(dropped, samples, strict=True)]
        context, pooled = conditions(encoders, tokenizers, captions, device)
        t, eps, x = objective.draw(x0, draws)
        more = dict[str, Tensor | None]()
        if conditions.xl:
            size = x0.shape[2] * vae.config.factor, x0.shape[3] * vae.config.factor
            more = {"text_embeds": pooled, "time_ids": time_ids(samples, size, device)}
        if classes is not None:
            more["class_labels"] = classes(samples, ~kept(draws, conditions.dropout))
        if beside is not None:
            channels, inputs = beside(samples, draws)
            x = torch.cat([x, channels], dim=1).contiguous(memory_format=torch.channels_last)
            more |= inputs
        mask = weights(samples, x0) if masks else None
        return objective.losses(unet(x, objective.times[t], context, **more), x0, t, eps, mask)

    def weights(samples: list[Sample], x0: Tensor) -> Tensor:
        """Return the masks of samples' losses, (B, 1, h, w); ones of regularisation images."""
        assert masks is not None
        own = [sample for sample in samples if not is_regularisation(sample)]
        mask = torch.from_numpy(masks(own, x0.shape[2:])).to(device)
        return torch.cat([mask, mask.new_ones(len(samples) - len(own), *mask.shape[1:])])

    wanted = cache.lacks if beside is None else lambda _: True
    return TrainingTask(
        data, loss_of, timesteps=len(objective.times), wanted=wanted, memory=objective.memory,
        networks=(networks, vae), cache=cache, regularisation=regularisation,
    )  # fmt: skip


def check_trainable(checkpoint: Checkpoint, gives: Collection[str] = ()) -> None:
    """Refuse a checkpoint whose U-Net reads more than a captioned image gives, or whose latents cannot be computed.

    Latents are those of a KL autoencoder, or, where captioned images are all that the U-Net is given, those before a
    codebook.

    Args:
        checkpoint: The checkpoint.
        gives: Kinds of sources that the task gives besides.

    Raises:
        LdmrtError: Says what it reads.
    """
    stage, expected = checkpoint.stage, "Stable Diffusion 1, 2 or XL"
    sources = [source for each in stage.reads.values() for source in each]
    if distilled := [source.kind for source in sources if source.kind == "guidance_scale"]:
        problem = "a distilled model reads its guidance scale, and would unlearn its few steps"
        raise LdmrtError("train", problem, expected=expected, found=distilled[0], hint="train the model it was made of")
    more = [source.kind for source in sources if source.kind not in (*READ, *gives) or "scored" in source.settings]
    if more:
        problem = "the U-Net reads more than captioned images give"
        command = next((TRAINED_BY[kind] for kind in more if kind in TRAINED_BY), None)
        hint = command and f"ldmrt train {command}, which trains all weights"
        raise LdmrtError("train", problem, expected=expected, found=", ".join(more), hint=hint)
    if not isinstance(checkpoint.unet, UNet) or not checkpoint.text_encoders:
        raise LdmrtError("train", "the model reads no prompt", expected=expected, found=type(checkpoint.unet).__name__)
    if not isinstance(checkpoint.vae, (Autoencoder,) if gives else (Autoencoder, VQAutoencoder)):
        found = "no autoencoder" if checkpoint.vae is None else type(checkpoint.vae).__name__
        raise LdmrtError("train", "the latents are not those of a KL autoencoder", expected=expected, found=found)
    if checkpoint.unet.config.out_channels != checkpoint.vae.config.latent_width:
        found = str(checkpoint.scheduler.get("variance_type"))
        raise LdmrtError("train", "a U-Net with a learned variance", expected="a fixed variance", found=found)
