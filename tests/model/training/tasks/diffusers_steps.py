"""Five steps of AdamW, written with diffusers' classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ldmrt.model.training.data.regularisation import Regularisation
from ldmrt.model.training.diffusion.objective import TIMESTEPS
from ldmrt.model.training.draws import Draws

from ..captioned import Three

Beside = Callable[[Any, torch.Tensor, Draws], tuple[torch.Tensor, dict[str, Any]]]


def drawn(streams: list[Draws], kind: str, *arguments: Any) -> torch.Tensor:
    """What the samples of a step draw, those of each stream behind each other."""
    return torch.cat([getattr(draws, kind)(*arguments) for draws in streams])


def steps_of_diffusers(
    folder: Path,
    train_text: bool = False,
    beside: Beside | None = None,
    rate: float = 1e-4,
    regularisation: Regularisation | None = None,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The lines of diffusers' examples, with the random numbers of our samples.

    `beside` takes the pipeline, the pixels and the draws, and returns the channels beside the latents and further
    arguments of the U-Net. With `regularisation` the lines are those of train_dreambooth.py: its images are behind the
    others in one batch.
    """
    import diffusers

    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    unet, vae, xl = pipe.unet.train(), pipe.vae, hasattr(pipe, "text_encoder_2")
    noiser = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    noiser.register_to_config(prediction_type=pipe.scheduler.config.prediction_type)
    encoders = [pipe.text_encoder, pipe.text_encoder_2] if xl else [pipe.text_encoder]
    tokenizers = [pipe.tokenizer, pipe.tokenizer_2] if xl else [pipe.tokenizer]
    weights = [*unet.parameters(), *(p for encoder in encoders if train_text for p in encoder.parameters())]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    losses = []
    for step in range(5):
        samples = [Three().draw(3, 2 * step + i) for i in range(2)]
        draws = Draws(3, places := range(2 * step, 2 * step + 2))
        streams = [draws]
        if regularisation is not None:
            samples += [regularisation.beside(one, 3, i) for one, i in zip(samples, places, strict=True)]
            streams.append(Draws(3, places, stream="regularisation "))
        pixels = torch.stack([torch.tensor(s.image).permute(2, 0, 1) / 127.5 - 1 for s in samples])
        with torch.no_grad():
            encoded = vae.encode(pixels)
        latents = encoded.get("latents")  # of a VQModel
        if latents is None:
            spread = encoded.latent_dist
            latents = spread.mean + spread.std * drawn(streams, "normal", "latents", spread.mean.shape[1:])
        latents = latents * vae.config.scaling_factor
        noise = drawn(streams, "normal", "noise", latents.shape[1:])
        timesteps = drawn(streams, "integers", TIMESTEPS, 1000)
        noisy = noiser.add_noise(latents, noise, timesteps)
        dropped = drawn(streams, "chance", "caption dropout", 0.5).tolist()
        captions = ["" if drop else s.caption for drop, s in zip(dropped, samples, strict=True)]
        states, pooled = [], None
        for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
            length = tokenizer.model_max_length
            ids = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            out = encoder(ids.input_ids, output_hidden_states=True)
            pooled = out[0]
            states.append(out.hidden_states[-2] if xl else out.last_hidden_state)
        context, more = torch.cat(states, dim=-1), dict[str, Any]()
        if xl:  # an empty prompt is zeros in its pipeline
            kept = ~torch.tensor(dropped)[:, None]
            context, pooled = context * kept[..., None], pooled * kept
            sizes = [s.sizes for s in samples if s.sizes is not None]
            ids = torch.tensor([[*one.original, *one.crop, *one.target] for one in sizes])
            more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
        target = noise if noiser.config.prediction_type == "epsilon" else noiser.get_velocity(latents, noise, timesteps)
        if beside is not None:
            channels, inputs = beside(pipe, pixels, draws)
            noisy, more = torch.cat([noisy, channels], dim=1), {**more, **inputs}
        predicted = unet(noisy, timesteps, context, **more).sample
        if regularisation is not None:
            predicted, predicted_prior = torch.chunk(predicted, 2, dim=0)
            target, target_prior = torch.chunk(target, 2, dim=0)
        loss = F.mse_loss(predicted.float(), target.float(), reduction="mean")
        if regularisation is not None:
            prior_loss = F.mse_loss(predicted_prior.float(), target_prior.float(), reduction="mean")
            loss = loss + regularisation.weight * prior_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    state = {f"unet.{key}": value for key, value in unet.state_dict().items()}
    for name, encoder in zip(("text_encoder", "text_encoder_2"), encoders, strict=False):
        state |= {f"{name}.{key}": value for key, value in encoder.state_dict().items()}
    return losses, state
