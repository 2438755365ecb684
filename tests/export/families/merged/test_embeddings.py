"""Textual inversions of FLUX.1 and Stable Diffusion 3: they draw what diffusers draws with them, or are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from safetensors.torch import save_file

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.textual_inversion.merge import add_embeddings, read_embedding
from ldmrt.runtime import LdmrtError, Pipeline
from ldmrt.runtime.samplers.noise.counter import FIRST, noise

from ....support.families.compared import close

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.* it has no parity certificate"),
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
    pytest.mark.filterwarnings("ignore:embedding. text_encoder.* has no vectors for"),
]
SEED, SIDE, WORDS = 3, 64, "<s0><s1>"
PROMPT = f"a {WORDS} pear, {WORDS}"
ASKED: dict[str, Any] = {"num_inference_steps": 3, "height": SIDE, "width": SIDE}


def vectors(encoders: dict[str, str], checkpoint: Path, count: int) -> dict[str, torch.Tensor]:
    """Return so many vectors for encoders by their names in the file, as large as those of other words."""
    generator, made = torch.Generator().manual_seed(5), load(checkpoint).text_encoders
    tables = {name: made[part].get_input_embeddings().weight for name, part in encoders.items()}
    return {name: torch.randn(count, one.shape[1], generator=generator) * one.std() for name, one in tables.items()}


def ours(checkpoint: Path, file: Path, word: str | None = None) -> Pipeline:
    loaded = load(checkpoint)
    add_embeddings(loaded.text_encoders, loaded.tokenizers, [read_embedding(file, word)])
    return torch_pipeline(loaded)


ONE_BY_ONE = [pytest.param((name,), marks=pytest.mark.slow(minutes=0.1), id=name) for name in ("clip_l", "t5")]


@pytest.mark.parametrize("encoders", [pytest.param(("clip_l", "t5"), id="both"), *ONE_BY_ONE])
def test_flux_draws_what_diffusers_draws(encoders: tuple[str, ...], flux_checkpoint: Path, tmp_path: Path) -> None:
    """As diffusers' script for pivotal tuning saves them: vectors of CLIP and of T5, each a word."""
    places = {"clip_l": "text_encoder", "t5": "text_encoder_2"}
    made = vectors({name: places[name] for name in encoders}, flux_checkpoint, 2)
    save_file(made, tmp_path / "words.safetensors")
    theirs: Any = FluxPipeline.from_pretrained(flux_checkpoint)
    theirs.set_progress_bar_config(disable=True)
    for name, own in made.items():
        part = places[name]
        encoder, tokenizer = getattr(theirs, part), getattr(theirs, part.replace("text_encoder", "tokenizer"))
        theirs.load_textual_inversion(own, token=["<s0>", "<s1>"], text_encoder=encoder, tokenizer=tokenizer)
    factor = theirs.vae_scale_factor
    x = torch.from_numpy(noise([SEED], FIRST, (16, SIDE // factor, SIDE // factor)))
    packed = theirs(PROMPT, latents=FluxPipeline._pack_latents(x, *x.shape), output_type="latent", **ASKED).images
    expected = FluxPipeline._unpack_latents(packed, SIDE, SIDE, factor).numpy()
    close(ours(flux_checkpoint, tmp_path / "words.safetensors")(PROMPT, seed=SEED, **ASKED).latents, expected)
    plain = torch_pipeline(load(flux_checkpoint))(PROMPT, seed=SEED, **ASKED).latents
    assert np.abs(plain - expected).max() > 1e-3 * np.abs(expected).max()  # the words change something


def test_stable_diffusion_3_reads_the_word_as_a_token(sd3_checkpoint: Path, tmp_path: Path) -> None:
    """diffusers' pipeline loads none, but a tokenizer and a text encoder can be given a word by transformers alone."""
    places = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
    made = vectors(places, sd3_checkpoint, 1)
    save_file(made, tmp_path / "words.safetensors")
    theirs: Any = StableDiffusion3Pipeline.from_pretrained(sd3_checkpoint)
    theirs.set_progress_bar_config(disable=True)
    for name, part in places.items():
        encoder, tokenizer = getattr(theirs, part), getattr(theirs, part.replace("text_encoder", "tokenizer"))
        tokenizer.add_tokens("<pear>")
        if len(tokenizer) > encoder.get_input_embeddings().num_embeddings:
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            encoder.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("<pear>")] = made[name][0]
    factor, prompt = theirs.vae_scale_factor, "a <pear>, noto style"
    channels = theirs.transformer.config.in_channels
    x = torch.from_numpy(noise([SEED], FIRST, (channels, SIDE // factor, SIDE // factor)))
    expected = theirs(prompt, latents=x, output_type="latent", **ASKED).images.numpy()
    pipeline = ours(sd3_checkpoint, tmp_path / "words.safetensors", "<pear>")
    close(pipeline(prompt, seed=SEED, **ASKED).latents, expected)


def test_t5_and_gemma_alone_take_no_words(
    pixart_checkpoint: Path, sana_checkpoint: Path, tmp_path: Path, flux_checkpoint: Path
) -> None:
    save_file(vectors({"t5": "text_encoder_2"}, flux_checkpoint, 1), tmp_path / "words.safetensors")
    for checkpoint, found in ((pixart_checkpoint, "T5EncoderModel"), (sana_checkpoint, "Gemma2Model")):
        with pytest.raises(
            LdmrtError, match=f"cannot be added to this text encoder; expected one of CLIP; found {found}"
        ):
            ours(checkpoint, tmp_path / "words.safetensors")


def test_a_vocabulary_of_sentencepiece_takes_no_words(flux_checkpoint: Path, tmp_path: Path) -> None:
    save_file(vectors({"t5": "text_encoder_2"}, flux_checkpoint, 1), tmp_path / "words.safetensors")
    loaded = load(flux_checkpoint)
    loaded.tokenizers["tokenizer_2"] = {"spiece.model": b""}
    problem = "tokenizer_2: words can be added to tokenizer.json alone; found spiece.model"
    with pytest.raises(LdmrtError, match=problem):
        add_embeddings(loaded.text_encoders, loaded.tokenizers, [read_embedding(tmp_path / "words.safetensors")])
