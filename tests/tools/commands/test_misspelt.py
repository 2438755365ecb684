"""Misspelt commands, options, values and names: every command says what was likely meant, and does nothing."""

from pathlib import Path
from typing import Any

import pytest

CASES = [
    ("inspct", "inspect"),
    ("generat BUNDLE x", "generate"),
    ("engines lst BUNDLE", "list"),
    ("train autoencodr", "autoencoder"),
    ("data emojis", "emoji"),
    ("generate BUNDLE x --sheduler ddim", "--scheduler"),
    ("generate BUNDLE x --scheduler eulr", "euler"),
    ("generate BUNDLE x --backend onnx-runtime", "onnxruntime"),
    ("generate BUNDLE x --backend ORT", "onnxruntime"),
    ("generate BUNDLE x --on-overflow retyr", "retry"),
    ("generate BUNDLE x --mask-from alhpa", "alpha"),
    ("generate BUNDLE x --control cany=PICTURE", None),  # the bundle has none
    ("verify BUNDLE --backend onnx", "onnxruntime"),
    ("verify BUNDLE --against CHECKPOINT --bisect uent", "unet"),
    ("export CHECKPOINT OUT --precision unett=fp16", "unet"),
    ("export CHECKPOINT OUT --precision pf16", "fp16"),
    ("export CHECKPOINT OUT --components vae_decodr", "vae_decoder"),
    ("export CHECKPOINT OUT --variant fp61", None),
    ("export CHECKPOINT OUT --prediction v-prediction", "v_prediction"),
    ("build BUNDLE --backend tensort", "tensorrt"),
    ("build BUNDLE --guidance onn", "on"),
    ("build BUNDLE --target sm89 --components vae_decodr", "vae_decoder"),
    ("plan BUNDLE --components text_encodr", "text_encoder"),
    ("engines refit BUNDLE --backend tensortt", "tensorrt"),
    ("bench BUNDLE --backend onnxrutime", "onnxruntime"),
    ("samplers dpmpp-2m --steps 4", "dpmpp_2m"),
    ("train autoencoder --data OUT --out OUT --precision bf61", "bf16"),
    ("train ldm --data OUT --out OUT --autoencoder OUT --device cud", "cuda"),
]


@pytest.mark.parametrize(("words", "meant"), CASES, ids=[words for words, _ in CASES])
def test_it_says_what_was_meant(
    ldmrt: Any, bundle: Path, checkpoint: Path, tmp_path: Path, words: str, meant: str | None
) -> None:
    picture = Path(__file__)  # a file, of which nothing is read
    places = {"BUNDLE": bundle, "CHECKPOINT": checkpoint, "OUT": tmp_path / "out", "PICTURE": picture}
    told = "".join(f"cany={picture}" if word == "cany=PICTURE" else "" for word in words.split())
    ran = ldmrt(*(told if word == "cany=PICTURE" else places.get(word, word) for word in words.split()))
    assert ran.error
    assert ("id you mean" in ran.err) == (meant is not None)
    if meant is not None:
        assert f"'{meant}'" in ran.err[ran.err.index("id you mean") :]
    assert not (tmp_path / "out").exists()
