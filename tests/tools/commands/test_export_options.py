"""`ldmrt export` with a precision, in part, and with files to merge."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ldmrt.runtime
from ldmrt.runtime import LdmrtError

PROMPT = "two pears"


def test_half_precision(bundle: Path, half: Path) -> None:
    manifest = json.loads((half / "ldmrt.json").read_text())
    rows = {name: row["precision"] for name, row in manifest["components"].items() if name != "vae_decoder_fp32"}
    assert set(rows.values()) == {"fp16"}
    weights = [(folder / "unet" / "model.onnx_data").stat().st_size for folder in (half, bundle)]
    assert 0.45 < weights[0] / weights[1] < 0.6
    pictures = []
    for folder in (half, bundle):
        pipeline = ldmrt_open(folder)
        pictures.append(pipeline(PROMPT, num_inference_steps=3).pixels.astype(float))
        pipeline.close()
    # half precision has 11 bits: a few of 255 grey levels after three rows
    assert np.abs(pictures[0] - pictures[1]).max() <= 4
    assert not np.array_equal(*pictures)


def test_a_part_leaves_the_others(ldmrt: Any, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    before = {file: file.read_bytes() for file in copy.glob("*/model.onnx*")}
    ran = ldmrt("export", checkpoint, copy, "--components", "vae_decoder", "--no-verify")
    assert (ran.code, ran.out) == (0, f"{copy}\n")
    assert "vae_decoder: reused" in ran.err
    assert "unet" not in ran.err
    assert {file: file.read_bytes() for file in copy.glob("*/model.onnx*")} == before
    ldmrt_open(copy)(PROMPT, num_inference_steps=1)
    assert (
        "no component 'vea', did you mean 'vae_decoder'?; expected text_encoder, unet"
        in ldmrt("export", checkpoint, copy, "--components", "vea").error
    )


@pytest.mark.slow(minutes=0.09)
def test_lora_and_word_are_merged_and_noted(ldmrt: Any, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    copy, rng = shutil.copytree(bundle, tmp_path / "copy"), torch.Generator().manual_seed(0)
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"  # test_refit.py exports one of the U-Net
    up, down = torch.randn(24, 4, generator=rng), torch.randn(4, 24, generator=rng)
    bundled = {"bundle_emb.kohya.string_to_param.*": torch.randn(1, 24, generator=rng)}
    save_file(
        {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down} | bundled, tmp_path / "style.safetensors"
    )
    save_file({"<pear>": torch.randn(2, 24, generator=rng)}, tmp_path / "fruit.safetensors")
    words = ("--lora", f"{tmp_path / 'style.safetensors'}:0.7", "--embedding", tmp_path / "fruit.safetensors")
    ran = ldmrt("export", checkpoint, copy, *words, "--embedding", f"{tmp_path / 'fruit.safetensors'}:my:word")
    assert ran.code == 0
    assert "fruit.safetensors: use <pear> or fruit in prompts" in ran.err
    assert "vae_decoder: reused" in ran.err
    manifest = json.loads((copy / "ldmrt.json").read_text())
    assert [(one["file"], one["weight"]) for one in manifest["loras"]] == [("style.safetensors", 0.7)]
    expected = [["<pear>", "fruit"], ["my:word"], ["kohya"]]
    assert [one["words"] for one in manifest["embeddings"]] == expected
    shown = ldmrt("inspect", copy).out
    assert "LoRA style.safetensors, weight 0.7" in shown
    assert "words of fruit.safetensors: <pear> or fruit" in shown
    assert "words of style.safetensors:kohya: kohya" in shown
    one, other = (ldmrt_open(folder)(PROMPT, num_inference_steps=2).latents for folder in (copy, bundle))
    assert np.abs(one - other).max() > 1e-3
    said = [
        ldmrt_open(copy)(f"a red {word}", num_inference_steps=2).latents
        for word in ("<pear>", "apple", "fruit", "my:word")
    ]
    assert np.abs(said[0] - said[1]).max() > 1e-3
    assert max(np.abs(other - said[0]).max() for other in said[2:]) < 1e-5  # rows of their own, of the same vectors


@pytest.mark.slow(minutes=0.05)
def test_words_of_the_checkpoint_are_listed(ldmrt: Any, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    """Those of its own tokenizer, beside those of files that are added to it."""
    from ldmrt.model import load
    from ldmrt.model.textual_inversion.merge import add_embedding, read_embedding

    loaded, rng = load(checkpoint), torch.Generator().manual_seed(0)
    for name, count in (("<cat-toy>", 2), ("[pear]", 1)):
        save_file({name: torch.randn(count, 24, generator=rng)}, tmp_path / "learned_embeds.safetensors")
        added = add_embedding(
            loaded.text_encoders["text_encoder"], loaded.tokenizers["tokenizer"], read_embedding(tmp_path)
        )
        loaded.tokenizers["tokenizer"] = added
    loaded.save(tmp_path / "trained")
    save_file({"<s>": torch.randn(2, 24, generator=rng)}, tmp_path / "fruit.safetensors")
    copy = shutil.copytree(bundle, tmp_path / "copy")
    word = ("--embedding", f"{tmp_path / 'fruit.safetensors'}:<s0><s1>")
    ran = ldmrt("export", tmp_path / "trained", copy, *word, "--no-verify")
    assert ran.code == 0
    assert "fruit.safetensors: use <s0><s1> in prompts\nwords of the checkpoint: <cat-toy>, [pear]\n" in ran.err
    lines = ldmrt("inspect", copy).out.splitlines()
    at = lines.index("words of fruit.safetensors: <s0><s1>")
    assert lines[at + 1] == "words of the checkpoint: <cat-toy>, [pear]"
    assert json.loads(ldmrt("inspect", copy, "--json").out)["words"] == ["<cat-toy>", "[pear]"]


OVERFLOWS = {
    "weight": ("1e38", {}),
    "alpha": ("1", {"alpha": torch.tensor(3e38)}),
    "infinite alpha": ("1", {"alpha": torch.tensor(float("inf"))}),
    "NaN": ("1", {"lora_down.weight": torch.full((4, 32), torch.nan)}),
    "float64": ("1", {"lora_up.weight": torch.full((32, 4), 1e300, dtype=torch.float64)}),
}


@pytest.mark.parametrize("name", list(OVERFLOWS))
def test_lora_that_overflows_leaves_the_bundle(
    name: str, ldmrt: Any, checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    weight, change = OVERFLOWS[name]
    copy = shutil.copytree(bundle, tmp_path / "copy")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    state = {"lora_up.weight": torch.ones(32, 4), "lora_down.weight": torch.ones(4, 32), **change}
    save_file({f"{layer}.{part}": value for part, value in state.items()}, tmp_path / "a.safetensors")
    error = ldmrt("export", checkpoint, copy, "--lora", f"{tmp_path / 'a.safetensors'}:{weight}").error
    assert layer in error
    assert "a.safetensors" in error
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "none.safetensors"], "none.safetensors"),
        (["--embedding", "none.safetensors"], "none.safetensors"),
        (["--controlnet", "canny"], "is not NAME=FOLDER"),
        (["--controlnet", "canny=none"], "missing file"),
        (["--adapter", "sketch"], "is not NAME=FOLDER"),
        (["--adapter", "sketch=none"], "adapter: missing file"),
        (["--precision", "fp8"], "invalid precision 'fp8'"),
    ],
)
def test_bad_option(
    ldmrt: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in ldmrt("export", checkpoint, "new", *options).error
    assert list(tmp_path.iterdir()) == []


def ldmrt_open(folder: Path, **options: Any) -> Any:
    return ldmrt.runtime.open(folder, **options)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of numbers that no half holds
def test_decoder_in_both_precisions(ldmrt: Any, bundle: Path, half: Path) -> None:
    manifest = json.loads((half / "ldmrt.json").read_text())
    assert {name for name, row in manifest["components"].items() if row["precision"] == "fp32"} == {"vae_decoder_fp32"}
    figures = {one["component"] for one in manifest["certificate"]["figures"]}
    assert {"vae_decoder", "vae_decoder_fp32"} <= figures
    assert (half / "vae_decoder_fp32/model.onnx").read_bytes() == (bundle / "vae_decoder/model.onnx").read_bytes()
    ran = ldmrt("verify", half)
    assert ran.code == 0
    assert "picture by vae_decoder_fp32" in ran.out
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32) * 1e5  # a half ends at 65504
    pipeline = ldmrt_open(half)
    with pytest.raises(LdmrtError, match="not finite\n  try: --on-overflow retry"):
        pipeline.decode(latents)
    pipeline.close()
    pictures = []
    for path, options in ((half, {"on_overflow": "retry"}), (bundle, {})):
        pipeline = ldmrt_open(path, **options)
        pictures.append(pipeline.decode(latents))
        pipeline.close()
    np.testing.assert_array_equal(*pictures)
