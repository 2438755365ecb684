"""What is refused at run time: in one error, and nothing has changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, Pipeline, Request
from ldmrt.runtime.backends.replaceable import check_replaceable
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.loras.loaded import Loras

from ....support.loras import State, save
from .conftest import ASKED

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"  # (32, 24)
NAN = float("nan")


def factors(layer: str = LINEAR, rows: int = 32, columns: int = 24, value: float = 0.1) -> State:
    return {
        f"{layer}.lora_up.weight": torch.full((rows, 2), value),
        f"{layer}.lora_down.weight": torch.full((2, columns), 0.1),
        f"{layer}.alpha": torch.tensor(2.0),
    }


FILES: dict[str, tuple[State, str]] = {
    "of another shape": (factors(rows=320), "have another shape than the weight"),
    "of no layer here": (factors("lora_unet_mid_block_attentions_9_proj_in"), "match no module of text_encoder, unet"),
    "of FLUX.1": (factors("lora_transformer_single_transformer_blocks_0_attn_to_q"), "is for another family of models"),
    "not finite": (factors(value=NAN), "is not finite"),
    "of one factor": ({f"{LINEAR}.lora_up.weight": torch.ones(32, 2)}, "lack their down or their up"),
    "of another method": ({f"{LINEAR}.hada_w1_a": torch.ones(32, 2)}, "lack a part of a LoHa"),
    "with words": ({**factors(), "bundle_emb.word.emb_params": torch.ones(1, 24)}, "brings textual inversions"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_does_not_fit(name: str, opened: Pipeline, tmp_path: Path) -> None:
    state, problem = FILES[name]
    path = save(state, tmp_path / "bad.safetensors")
    before, plain = opened.loras.names, opened(**ASKED).latents.tobytes()
    with pytest.raises(LdmrtError, match=problem) as raised:
        opened.load_lora(path)
    assert raised.value.where == "lora"
    assert opened.loras.names == before
    assert opened(**ASKED).latents.tobytes() == plain


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def long_header(path: Path) -> None:
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])


def no_object(path: Path) -> None:
    path.write_bytes((2).to_bytes(8, "little") + b"[]")


def of_bits(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F4X"'))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off": (cut, "cannot read"),
    "of a header longer than the file": (long_header, "cannot read"),
    "of a header that is a list": (no_object, "cannot read the header"),
    "of an unknown dtype": (of_bits, "is of an unsupported dtype"),
    "gone": (Path.unlink, "missing file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file(name: str, opened: Pipeline, tmp_path: Path) -> None:
    damage, problem = DAMAGE[name]
    path = save(factors(), tmp_path / "bad.safetensors")
    damage(path)
    with pytest.raises(LdmrtError, match=problem):
        opened.load_lora(path)


def test_a_pickle_needs_torch(opened: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    torch.save(factors(), path)
    with pytest.raises(LdmrtError, match="is a pickle") as raised:
        opened.load_lora(path)
    assert "ldmrt export" in str(raised.value.hint)


def test_names_and_weights(opened: Pipeline, attention: Path) -> None:
    chosen = opened.loras.weights
    for weights in ({"attentoin": 1.0}, {"attention": NAN}, {"attention": True}):
        with pytest.raises(InvalidRequest):
            opened.set_loras(weights)
        with pytest.raises(InvalidRequest):
            opened(**ASKED, loras=weights)
    with pytest.raises(InvalidRequest, match="did you mean 'attention'"):
        opened.set_loras({"attention": 1.0, "attentoin": 1.0})
    assert opened.loras.weights == chosen
    with pytest.raises(InvalidRequest, match="no LoRA 'other' is loaded"):
        opened.unload_lora("other")
    with pytest.raises(LdmrtError, match="attention is loaded already"):
        opened.load_lora(attention)
    with pytest.raises(LdmrtError, match="a LoRA cannot be called"):
        opened.load_lora(attention, "a:b")
    with pytest.raises(InvalidRequest, match="loras holds no weights by name"):
        Request("a", loras=["attention"])  # type: ignore[arg-type]
    with pytest.raises(LdmrtError, match="this pipeline has no bundle"):
        Loras().load(attention, None)


PROMPTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"prompt": "a pear <lora:attentoin:1>"}, "no LoRA 'attentoin' is loaded, did you mean 'attention'"),
    "negative": ({"negative_prompt": "<lora:attention:1>"}, "a negative prompt loads no LoRA"),
    "second": ({"prompt_2": "<lora:attention:1>"}, "prompt_2 loads no LoRA"),
    "several": ({"prompt": ["a", "a <lora:attention:1>"]}, "prompts of one request ask for different LoRAs"),
    "hypernetwork": ({"prompt": "a <hypernet:x:1>"}, "a prompt loads no hypernet"),
    "two weights": ({"prompt": "a <lora:attention:1:0.5>"}, "this names no LoRA and its one weight"),
    "no number": ({"prompt": "a <lora:attention:much>"}, "'much' is no weight"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_tags_of_prompts(name: str, opened: Pipeline) -> None:
    fields, problem = PROMPTS[name]
    with pytest.raises(InvalidRequest, match=problem) as raised:
        opened(**{**ASKED, "prompt_syntax": "a1111", **fields})
    if name != "several":
        assert raised.value.place is not None
        at = raised.value.place.text[raised.value.place.at :]
        assert at.startswith(("<lora:", "<hypernet:") if name != "no number" else "much")


def test_prompts_with_different_loras_are_not_interpolated(opened: Pipeline) -> None:
    keys = [Request(**ASKED, loras={"attention": weight}) for weight in (0.5, 0.6)]
    with pytest.raises(InvalidRequest, match="prompts with different LoRAs cannot be interpolated"):
        list(opened.interpolate(keys, 3))


def test_a_caret_points_past_the_tags(opened: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="is no weight") as raised:
        opened("a <lora:attention:1>(pear:1.2.3)", prompt_syntax="a1111")
    place = raised.value.place
    assert place is not None
    assert place.text[place.at :].startswith("1.2.3")


@pytest.mark.parametrize(
    ("backend", "options", "problem", "hint"),
    [
        ("tensorrt-rtx", {}, "TensorRT-RTX compiles an engine with its weights", "--backend onnxruntime"),
        ("openvino", {}, "OpenVINO compiles a network with its weights", "--backend onnxruntime"),
        ("openvino-gpu", {}, "OpenVINO compiles a network with its weights", "--backend onnxruntime"),
        ("onnxruntime", {"low_memory": True}, "low_memory leaves weights in their file", "without --low-memory"),
    ],
)
def test_backends_that_replace_no_weights(
    backend: str, options: dict[str, Any], problem: str, hint: str, bundle: Path
) -> None:
    with pytest.raises(LdmrtError, match=problem) as raised:
        check_replaceable(Bundle.open(bundle, check=False), backend, (), **{"low_memory": False, **options})
    assert hint in str(raised.value.hint)


def test_low_memory_says_so_before_anything_is_loaded(bundle: Path, attention: Path) -> None:
    with ldmrt.runtime.open(bundle, check=False, low_memory=True) as pipeline:
        with pytest.raises(LdmrtError, match="low_memory"):
            pipeline.load_lora(attention)
        assert pipeline.loras.names == ()
        assert np.isfinite(pipeline(**ASKED).latents).all()
