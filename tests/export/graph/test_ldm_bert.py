"""Latent diffusion's text encoder as a component: its graph, and prompts as diffusers' pipeline encodes them."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from transformers import BertTokenizerFast

from ldmrt.export.components.fingerprint import fingerprint
from ldmrt.export.components.specs import tensors
from ldmrt.export.components.table import Component, components, example
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.export.parity.origin import other_graph
from ldmrt.model import Autoencoder, UNet
from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.model.networks.ldm_bert import LDMBert
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.bundle.stages import Source
from ldmrt.runtime.pipeline.conditioning.prompts import encode
from ldmrt.runtime.tensors import TensorSpec
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from ...model.networks.test_ldm_bert import CONFIGS, SMALL, pair, tokens
from ...runtime.tokenizer.test_wordpiece import TOKENS, folder

WIDTH = SMALL["d_model"]
# Float32 on both sides: the order of sums, and the fusions of ONNX Runtime
CLOSE = 2e-5
BERT = {"vocab_size": len(TOKENS)}


def checkpoint(encoder: LDMBert) -> Checkpoint:
    """The encoder in a small latent diffusion model."""
    blocks: dict[str, Any] = {"block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4}
    unet = UNet.from_config(
        blocks | {"cross_attention_dim": WIDTH, "attention_head_dim": 2, "down_block_types": ["CrossAttnDownBlock2D"],
                  "up_block_types": ["CrossAttnUpBlock2D"]}
    )  # fmt: skip
    ends = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    vae = Autoencoder.from_config(blocks | ends)
    return Checkpoint(unet, vae, {"text_encoder": encoder}, {"tokenizer": folder()}, {"_class_name": "DDIMScheduler"})


def component(encoder: LDMBert) -> Component:
    return components(checkpoint(encoder))["text_encoder"]


def relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found.astype(np.float32) - expected).max() / np.abs(expected).max())


@pytest.mark.slow(minutes=0.11)
@pytest.mark.parametrize("name", ["as published", "more positions than tokens"])
@torch.no_grad()
def test_graph_computes_what_diffusers_computes(name: str, tmp_path: Path) -> None:
    ours, theirs = pair(CONFIGS[name])
    part = component(ours)
    assert part.inputs == (TensorSpec("input_ids", "int64", ("batch", 77)),)
    assert part.outputs == (TensorSpec("last_hidden_state", "float32", ("batch", 77, WIDTH)),)
    path = to_onnx(part, tmp_path / "text_encoder")
    assert [*other_graph(part, path)] == []  # every weight but the head's is in it
    assert {node.op_type for node in onnx.load(path).graph.node} >= {"Attention", "LayerNormalization"}
    with closing(OrtEngine("text_encoder", path)) as engine:
        assert engine.inputs[0].shape == ("batch", 77)
        for rows in (1, 3):
            ids = tokens(rows)
            found = engine(input_ids=ids.numpy())["last_hidden_state"]
            assert relative(found, theirs(ids)[0].numpy()) <= CLOSE


@pytest.mark.slow(minutes=0.05)
@torch.no_grad()
def test_graph_of_half_precision(tmp_path: Path) -> None:
    ours, theirs = pair(SMALL)
    part = component(ours.half())
    assert part.precision == "fp16"
    ids = tokens(3)
    with closing(OrtEngine("text_encoder", to_onnx(part, tmp_path / "text_encoder"))) as engine:
        found = engine(input_ids=ids.numpy())["last_hidden_state"]
    # As in PyTorch: each of 3 layers rounds what it adds up some ten times. 2.3 units were measured.
    assert relative(found, theirs(ids)[0].numpy()) <= 10 * 2**-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_example_is_what_the_encoder_takes(dtype: torch.dtype) -> None:
    ours, _ = pair(SMALL)
    part = component(ours.to(dtype))
    arrays = example(part, {"batch": 2})
    assert arrays["input_ids"].max() < 50
    (state,) = part.module(**tensors(part.inputs, arrays))
    assert (state.dtype, state.shape) == (torch.float32, (2, 77, WIDTH))


def test_head_is_no_part_of_the_component() -> None:
    ours, _ = pair(SMALL)
    before = fingerprint(component(ours))
    torch.nn.init.zeros_(ours.to_logits.weight)
    assert fingerprint(component(ours)) == before
    torch.nn.init.zeros_(ours.model.layer_norm.bias)
    assert fingerprint(component(ours)) != before


@torch.no_grad()
def test_prompts_are_encoded_as_in_diffusers_pipeline(tmp_path: Path) -> None:
    ours, theirs = pair(SMALL | BERT)
    made = checkpoint(ours)
    for name, content in folder().items():
        (tmp_path / name).write_bytes(content)
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path)
    texts = ["a painting of a squirrel", "", "A RED Apple!"]
    fixed = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
    expected = theirs(tokenizer(texts, **fixed).input_ids)[0].numpy()
    engines = {"text_encoder": components(made)["text_encoder"].engine()}
    own = {"tokenizer": Tokenizer(made.tokenizers["tokenizer"])}
    words = encode(engines, own, [(text,) for text in texts], [0, 0, 0], Source("prompt"))
    assert relative(words.context, expected) <= 2e-6  # as in `test_ldm_bert`
    assert words.pooled is None
    assert made.model_index()["tokenizer"] == ["transformers", "BertTokenizer"]


def test_no_layer_can_be_skipped() -> None:
    ours, _ = pair(SMALL | BERT)
    made = checkpoint(ours)
    engines = {"text_encoder": components(made)["text_encoder"].engine()}
    with pytest.raises(LdmrtError, match=r"^text_encoder: cannot skip 1 layers"):
        encode(engines, {"tokenizer": Tokenizer(made.tokenizers["tokenizer"])}, [("a",)], [1], Source("prompt"))
