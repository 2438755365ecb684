"""Refuse the parts of a checkpoint that do not fit together, before their weights are read."""

import warnings

from ldmrt.model.library.deep_autoencoder import DeepAutoencoder
from ldmrt.model.library.qwen3 import check_template
from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.model.networks.tiny_autoencoder import TinyAutoencoder
from ldmrt.model.networks.unet import UNet
from ldmrt.runtime.bundle.graphs import DECODER_PREVIEW, TRANSFORMER
from ldmrt.runtime.bundle.stage_of_configs import PIXART, SANA
from ldmrt.runtime.bundle.stages import CHAT, INSTRUCTED, MASKED
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.samplers.registry import plan_from_config
from ldmrt.runtime.samplers.schedule import signal_and_noise
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer, token_count
from ldmrt.runtime.tokenizer.vocabulary import reads_any_length

from .checkpoint import Checkpoint, class_of
from .folder import GEMMA, INDEX, ONE_STATE, QWEN, T5, TEXT
from .transformer_fit import check_transformer, latent_channels

COLOURS = 3  # of an RGB image
IMAGE_CHANNELS = (1, COLOURS)  # grey and RGB


def check_fit(checkpoint: Checkpoint) -> None:
    """Refuse parts that do not fit together.

    Raises:
        LdmrtError: Names the part and the value of its config.
    """
    _check_codec(checkpoint)
    _check_tiny(checkpoint)
    _check_colours(checkpoint)
    if checkpoint.stage.network == TRANSFORMER:
        check_transformer(checkpoint)
    else:
        _check_channels(checkpoint)
        _check_noisers(checkpoint)
        _check_context(checkpoint)
        _check_additions(checkpoint)
    _check_tokenizers(checkpoint)
    _check_scheduler(checkpoint)


def check_preview(checkpoint: Checkpoint) -> None:
    """Refuse a preview decoder that does not decode the model's latents to images of its size.

    Raises:
        LdmrtError: Names the value of its config.
    """
    tiny, space = checkpoint.preview, checkpoint.stage.space
    if tiny is None:
        return
    if checkpoint.vae is None:
        problem, hint = "this model works in pixels, which nothing decodes", "leave out --preview-decoder"
        raise LdmrtError(DECODER_PREVIEW, problem, hint=hint)
    _check_shift(DECODER_PREVIEW, tiny, checkpoint)
    for name, expected, found in (
        ("latent_channels", space.channels, tiny.config.latent_channels),
        ("number of pixels for each latent", space.factor, tiny.config.factor),
        ("out_channels", COLOURS, tiny.config.out_channels),
    ):
        if found != expected:
            problem = f"the preview decoder has another {name} than the model"
            raise LdmrtError(DECODER_PREVIEW, problem, expected=expected, found=found)


def _check_shift(part: str, tiny: TinyAutoencoder, checkpoint: Checkpoint) -> None:
    """Refuse a tiny autoencoder with a shift beside a U-Net, PixArt or Sana: their pipelines do not read it."""
    unet = isinstance(checkpoint.denoiser, (UNet, PlainUNet))
    family = "a U-Net" if unet else {PIXART: "PixArt", SANA: "Sana"}.get(class_of(checkpoint.denoiser))
    if tiny.config.shift_factor is not None and family:
        problem = f"unsupported shift_factor of a tiny autoencoder beside {family}"
        raise LdmrtError(part, problem, expected=0, found=tiny.config.shift_factor)


def _check_codec(checkpoint: Checkpoint) -> None:
    """Refuse a deep autoencoder beside other networks than Sana's, and others beside that: so diffusers has them."""
    sana, vae = class_of(checkpoint.denoiser) == SANA, checkpoint.vae
    if isinstance(vae, DeepAutoencoder) and not sana:
        problem = "AutoencoderDC is read beside Sana's transformer alone"
        raise LdmrtError("vae", problem, expected="AutoencoderKL", found="AutoencoderDC")
    if sana and vae is not None and not isinstance(vae, (DeepAutoencoder, TinyAutoencoder)):
        raise LdmrtError("vae", "Sana has another autoencoder", expected="AutoencoderDC", found=class_of(vae))


def _check_tiny(checkpoint: Checkpoint) -> None:
    """Refuse a tiny autoencoder of other latents than a transformer's, or with a shift beside a U-Net."""
    if not isinstance(checkpoint.vae, TinyAutoencoder):
        return
    config = checkpoint.vae.config
    _check_shift("vae", checkpoint.vae, checkpoint)
    if isinstance(checkpoint.denoiser, (UNet, PlainUNet)):
        return
    if config.latent_channels != (channels := latent_channels(checkpoint)):
        problem = "latent_channels of the tiny autoencoder are not those of the transformer"
        raise LdmrtError("vae", problem, expected=channels, found=config.latent_channels)


def _check_colours(checkpoint: Checkpoint) -> None:
    """Refuse an autoencoder, or a U-Net that works in pixels, of anything but images."""
    stage = checkpoint.stage
    if checkpoint.vae is None:
        if stage.space.channels not in IMAGE_CHANNELS:
            problem, expected = "unsupported in_channels of unet/config.json", "1 or 3, of a grey or an RGB image"
            raise LdmrtError("unet", problem, expected=expected, found=stage.space.channels)
        return
    vae, colours = checkpoint.vae.config, COLOURS + stage.depth
    meaning = "an RGB image and its depth" if stage.depth else "an RGB image"
    for name, count in (("in_channels", vae.in_channels), ("out_channels", vae.out_channels)):
        if count != colours:
            hint = f"{INDEX} of StableDiffusionLDM3DPipeline" if count in (4, 6) else None
            raise LdmrtError("vae", f"unsupported {name}", expected=f"{colours}, of {meaning}", found=count, hint=hint)


def _check_channels(checkpoint: Checkpoint) -> None:
    """Refuse a U-Net that takes other channels than its stage gives, or predicts others than its sampler reads."""
    unet, stage = checkpoint.unet.config, checkpoint.stage
    if unet.class_embed_type is not None:
        problem, found = "unsupported class_embed_type in unet/config.json", unet.class_embed_type
        raise LdmrtError("unet", problem, expected="none, or num_class_embeds alone", found=found)
    if unet.in_channels != stage.input_channels:
        own = "latent_channels of vae/config.json" if checkpoint.vae else f"{stage.space.channels} of the state"
        problem = f"in_channels of unet/config.json is not {own}"
        problem += "".join(f" and {count} of the {kind}" for kind, count in stage.channels_beside.items())
        raise LdmrtError("unet", problem, expected=stage.input_channels, found=unet.in_channels)
    channels, kind = stage.space.channels, str(checkpoint.scheduler.get("variance_type"))
    learned = kind.startswith("learned")
    if unet.out_channels not in (channels, 2 * channels):
        expected = f"{channels}, or {2 * channels} with a learned variance"
        problem = "unsupported out_channels in unet/config.json"
        raise LdmrtError("unet", problem, expected=expected, found=unet.out_channels)
    if learned is not (unet.out_channels == 2 * channels):
        problem = "out_channels of unet/config.json does not fit variance_type of scheduler_config.json"
        expected = f"{2 * channels} with learned or learned_range, and else {channels}"
        raise LdmrtError("unet", problem, expected=expected, found=f"{unet.out_channels} with {kind}")


def _check_noisers(checkpoint: Checkpoint) -> None:
    """Refuse an upscaler without the scheduler that adds noise to its image, or whose noise levels do not fit."""
    stage = checkpoint.stage
    if lacking := [name for name in stage.schedulers if name not in checkpoint.noisers]:
        raise LdmrtError("checkpoint", f"{INDEX} names no {lacking[0]}", expected="a scheduler of diffusers")
    if stage.schedulers:
        most, classes = stage.max_noise_level, checkpoint.unet.config.num_class_embeds or 0
        if most >= classes:
            problem, expected = "num_class_embeds of unet/config.json is not above max_noise_level", f"above {most}"
            raise LdmrtError("unet", problem, expected=expected, found=classes)
        for noiser in checkpoint.noisers.values():
            signal_and_noise(noiser, most)  # raises where its config is invalid


def _check_context(checkpoint: Checkpoint) -> None:
    """Refuse text encoders whose states are not as wide as the context that the U-Net reads."""
    encoders = checkpoint.text_encoders
    files = " + ".join(f"{name}/config.json" for name in encoders) or "no text encoder"
    if isinstance(checkpoint.unet, PlainUNet):
        if encoders:
            raise LdmrtError("unet", "UNet2DModel reads no text", expected="no text encoder", found=files)
        return
    for name, encoder in encoders.items():
        if (kind := class_of(encoder)) in ONE_STATE:
            problem = f"unsupported { {T5: 'T5', GEMMA: 'Gemma', QWEN: 'Qwen3'}[kind] } text encoder beside a U-Net"
            raise LdmrtError(name, problem, expected=" or ".join(TEXT), found=kind)
    width = sum(encoder.config.hidden_size for encoder in encoders.values())
    if width != checkpoint.unet.config.cross_attention_dim:
        problem = f"cross_attention_dim of unet/config.json is not hidden_size of {files}"
        raise LdmrtError("unet", problem, expected=width, found=checkpoint.unet.config.cross_attention_dim)


def _check_additions(checkpoint: Checkpoint) -> None:
    """Refuse an SDXL whose pooled text and sizes are not as wide as its U-Net takes them."""
    unet, encoders = checkpoint.unet.config, checkpoint.text_encoders
    if unet.addition_embed_type:
        assert unet.addition_time_embed_dim is not None  # its config says so
        numbers = 5 if checkpoint.index.get("requires_aesthetics_score") else 6
        pooled = list(encoders.values())[-1].config.projection_dim
        inputs = pooled + numbers * unet.addition_time_embed_dim
        if inputs != unet.projection_class_embeddings_input_dim:
            problem = f"projection_class_embeddings_input_dim does not fit the text encoder and {numbers} sizes"
            raise LdmrtError("unet", problem, expected=inputs, found=unet.projection_class_embeddings_input_dim)


def _check_tokenizers(checkpoint: Checkpoint) -> None:
    """Refuse tokenizers that are missing, or that do not fit their text encoders or one another."""
    for name, encoder in checkpoint.text_encoders.items():
        part = name.replace("text_encoder", "tokenizer")
        if part not in checkpoint.tokenizers:
            raise LdmrtError(part, f"{INDEX} names no {part}", expected=f"one for {name}")
        tokens, text = Tokenizer(checkpoint.tokenizers[part]), encoder.config
        positions = getattr(text, "max_position_embeddings", tokens.length)  # T5 has relative ones
        if tokens.size > text.vocab_size or tokens.length > positions:
            expected = f"at most {text.vocab_size} entries and {positions} tokens"
            sizes = f"{tokens.size} and {tokens.length}"
            raise LdmrtError(part, "does not fit the text encoder", expected=expected, found=sizes)
        prompt = checkpoint.stage.prompt
        if prompt is not None and prompt.kind in (MASKED, INSTRUCTED) and tokens.pad != text.pad_token_id:
            problem = "pads with another id than the text encoder"
            raise LdmrtError(part, problem, expected=text.pad_token_id, found=tokens.pad)
        if prompt is not None and prompt.kind == CHAT:
            check_template(part, checkpoint.tokenizers[part], str(prompt.setting("template")))
    lengths = {part: token_count(files) for part, files in checkpoint.tokenizers.items() if not reads_any_length(files)}
    if len(set(lengths.values())) > 1:  # whose contexts lie side by side
        each = ", ".join(f"{length} of {part}" for part, length in lengths.items())
        raise LdmrtError("tokenizer_2", "another model_max_length than the first tokenizer's", found=each)


def _check_scheduler(checkpoint: Checkpoint) -> None:
    """Refuse a scheduler whose numbers cannot be computed with."""
    try:
        with warnings.catch_warnings():  # unknown keys are warned of where the scheduler is used
            warnings.simplefilter("ignore", LdmrtWarning)
            stage = checkpoint.stage
            plan_from_config(checkpoint.scheduler, 4, tokens=stage.tokens(stage.own), trailing=stage.trailing)
    except (TypeError, ValueError, ArithmeticError, IndexError) as error:
        raise LdmrtError("scheduler", "invalid config", found=first_line(error)) from None
