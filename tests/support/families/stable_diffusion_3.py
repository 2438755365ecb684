"""Stable Diffusion 3 and 3.5 as diffusers' pipelines save them, small and with random weights."""

import io
from functools import cache
from pathlib import Path
from typing import Any

from .stable_diffusion import _TEXTG, CAPTIONS, Config, _text, _vae

PIECES = 160  # of T5's vocabulary, beside its sentinels
WIDTH = 64  # of T5's states

_TRANSFORMER: Config = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": WIDTH,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 24 + 20,
    "pos_embed_max_size": 24,
}
_MEDIUM = _TRANSFORMER | {"dual_attention_layers": [0, 1], "qk_norm": "rms_norm"}
_VAE = _vae(8, 16, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)
_VAE |= {"use_quant_conv": False, "use_post_quant_conv": False}
_SHIFTED = {"shift": 3.0}
_DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 8, "max_image_seq_len": 64}
T5: Config = {
    "d_model": WIDTH, "d_kv": 8, "d_ff": 96, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
}  # fmt: skip

# The transformer's config, the scheduler's, and whether there is a T5.
SD3: dict[str, tuple[Config, Config, bool]] = {
    "sd3": (_TRANSFORMER, _SHIFTED, True),
    "sd3-without-t5": (_TRANSFORMER, _SHIFTED, False),
    "sd35-medium": (_MEDIUM, _SHIFTED, True),
    "sd35-large": (_TRANSFORMER | {"qk_norm": "rms_norm"}, _SHIFTED, True),
    "sd35-dynamic": (_MEDIUM | {"patch_size": 1, "pos_embed_max_size": 48}, _DYNAMIC, False),
}
EXPORTED = "sd35-medium"  # with all that the others have


@cache
def sentencepiece_file() -> bytes:
    """A spiece.model as SentencePiece trains it, with T5's ids and its normalised characters."""
    import sentencepiece

    out = io.BytesIO()
    texts = [*CAPTIONS, "An OLD photograph of a harbour at dawn, 4k; naïve café ﬁlm ① ２ Å"] * 4
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, vocab_size=PIECES, model_type="unigram", minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, normalization_rule_name="nmt_nfkc",
    )  # fmt: skip
    return out.getvalue()


def save_sd3(name: str, folder: Path) -> Path:
    """Write a pipeline of this family into `folder`, as the hub has it, and return the folder."""
    import diffusers
    import torch
    import transformers

    from ..pipelines import _text_encoder, randomise, tokenizer_files

    transformer, scheduler, has_t5 = SD3[name]
    torch.manual_seed(5)
    networks: dict[str, Any] = {
        "transformer": diffusers.SD3Transformer2DModel(**transformer),
        "vae": diffusers.AutoencoderKL(**_VAE),
        "text_encoder": _text_encoder(_text(24, "quick_gelu"), "CLIPTextModelWithProjection"),
        "text_encoder_2": _text_encoder(_TEXTG, "CLIPTextModelWithProjection"),
    }
    parts: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
    for number, pad in (("", "<|endoftext|>"), ("_2", "!")):
        place = folder / f"tokenizer{number}"
        place.mkdir(parents=True, exist_ok=True)
        for file, content in tokenizer_files(pad).items():
            (place / file).write_bytes(content)
        parts[f"tokenizer{number}"] = transformers.CLIPTokenizer.from_pretrained(place)
    if has_t5:
        place = folder / "tokenizer_3"
        place.mkdir()
        (place / "spiece.model").write_bytes(sentencepiece_file())
        parts["tokenizer_3"] = transformers.T5TokenizerFast.from_pretrained(place)
        size = len(parts["tokenizer_3"]) + 12
        networks["text_encoder_3"] = transformers.T5EncoderModel(transformers.T5Config(**T5, vocab_size=size))
    parts |= {name: randomise(network, seed) for seed, (name, network) in enumerate(networks.items())}
    parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(**scheduler)
    diffusers.StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    return folder
