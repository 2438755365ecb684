"""Latent diffusion's text encoder against diffusers' LDMBertModel with the same weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion as theirs
from torch import Tensor

from ldmrt.model.checkpoint.checkpoint import build, class_of, is_text_encoder, save_text_encoder
from ldmrt.model.checkpoint.folder import part_of_folder
from ldmrt.model.config import check_depth
from ldmrt.model.networks.ldm_bert import LDMBert, LDMBertConfig
from ldmrt.model.weights.weights import fill, match
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.files.reading import read_json

from ...support.pipelines import randomise

Config = dict[str, Any]
# As CompVis/ldm-text2im-large-256, whose heads are together narrower than its tokens, but small.
SMALL: Config = {
    "vocab_size": 50, "encoder_layers": 3, "encoder_ffn_dim": 64, "encoder_attention_heads": 2, "head_dim": 6,
    "d_model": 16,
}  # fmt: skip
CONFIGS: dict[str, Config] = {
    "as published": SMALL,
    "one layer, one head": SMALL | {"encoder_layers": 1, "encoder_attention_heads": 1, "head_dim": 3},
    "wider heads than tokens": SMALL | {"encoder_attention_heads": 8, "head_dim": 5},
    "many layers": SMALL | {"encoder_layers": 12, "d_model": 32},
    "another activation": SMALL | {"activation_function": "relu"},
    "more positions than tokens": SMALL | {"max_position_embeddings": 90},
}
# Float32 on both sides: the order of sums and where the scores are scaled differ, by 8e-7 in networks of this size.
CLOSE = 2e-6


def pair(settings: Config) -> tuple[LDMBert, Any]:
    """Ours, read from the config that theirs saves, and theirs."""
    torch.manual_seed(1)
    model = randomise(theirs.LDMBertModel(theirs.LDMBertConfig(**settings)))
    ours = LDMBert.from_config(json.loads(model.config.to_json_string())).eval()
    assert ours.state_dict().keys() == model.state_dict().keys()
    ours.load_state_dict(model.state_dict())
    return ours, model


def tokens(rows: int, length: int = 77) -> Tensor:
    """Random tokens, and padding at the end of every row."""
    ids = torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(rows))
    ids[:, -length // 3 :] = 0
    return ids


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return float((found.float() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_states_equal_diffusers(name: str) -> None:
    ours, model = pair(CONFIGS[name])
    for rows, length in ((1, 77), (3, 77), (2, 5)):
        ids = tokens(rows, length)
        assert relative(ours(ids), model(ids)[0]) <= CLOSE


@torch.no_grad()
def test_padding_is_read_as_the_pipeline_reads_it() -> None:
    """No mask: what pads a row changes the states of its words."""
    ours, _ = pair(SMALL)
    ids = tokens(1)
    other = ids.clone()
    other[:, -1] = 7
    assert relative(ours(other)[:, :20], ours(ids)[:, :20]) > 1e-3


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)], ids=str)
@torch.no_grad()
def test_half_precision(dtype: torch.dtype, unit: float) -> None:
    ours, model = pair(SMALL)
    ids = tokens(3)
    expected = model(ids)[0]
    found = ours.to(dtype)(ids)
    assert found.dtype == dtype
    # Each of 3 layers rounds what it adds up some ten times, by at most half a unit: 3.8 units were measured.
    assert relative(found, expected) <= 10 * unit


@pytest.mark.parametrize("kind", ["safetensors", "as in 2022"])
@torch.no_grad()
def test_every_tensor_of_a_saved_encoder_is_used(kind: str, tmp_path: Path) -> None:
    _, model = pair(SMALL)
    model.save_pretrained(tmp_path)
    if kind == "as in 2022":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    network = build("text_encoder", "LDMBertModel", read_json("text_encoder", tmp_path / "config.json"))
    assert isinstance(network, LDMBert)
    assert is_text_encoder(network)
    assert class_of(network) == "LDMBertModel"
    tensors = part_of_folder("text_encoder", tmp_path)
    matched = match("text_encoder", network, tensors)  # which refuses a file that holds more
    assert len(matched) == len(model.state_dict())
    ids = tokens(2)
    assert relative(fill("text_encoder", network, matched, tensors, torch.float32)(ids), model(ids)[0]) <= CLOSE


@torch.no_grad()
def test_saved_encoder_is_read_by_diffusers(tmp_path: Path) -> None:
    ours, model = pair(CONFIGS["more positions than tokens"])
    save_text_encoder(tmp_path, ours, torch.float32)
    again = theirs.LDMBertModel.from_pretrained(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert LDMBertConfig.read(json.loads((tmp_path / "config.json").read_text())) == ours.config
    for key, value in ours.config.to_dict().items():
        assert getattr(again.config, key) == value


def test_defaults_are_those_of_diffusers() -> None:
    published = json.loads(theirs.LDMBertConfig().to_json_string(use_diff=False))
    fields = {key: value for key, value in published.items() if key in LDMBertConfig().to_dict()}
    assert LDMBertConfig.read(fields) == LDMBertConfig() == LDMBertConfig.read({})
    assert LDMBertConfig().hidden_size == theirs.LDMBertConfig().hidden_size == 1280


def test_published_size_has_the_weights_of_diffusers() -> None:
    with torch.device("meta"):
        ours, model = LDMBert(LDMBertConfig()), theirs.LDMBertModel(theirs.LDMBertConfig())
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in model.state_dict().items()}
    assert sum(shape.numel() for shape in shapes.values()) > 500e6


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"activation_function": "tanh"}, "unsupported activation_function"),
        ({"activation_function": None}, "activation_function"),
        ({"attention_bias": True}, "unknown config key 'attention_bias'"),
        ({"scale_embedding": True}, "unsupported scale_embedding"),
        ({"is_decoder": True}, "unsupported is_decoder"),
        ({"model_type": "bert"}, "unsupported model_type"),
        ({"num_hidden_layers": 4}, "unsupported num_hidden_layers"),
        ({"encoder_layers": 0, "num_hidden_layers": 0}, "encoder_layers"),
        ({"encoder_layers": "3"}, "encoder_layers"),
        ({"encoder_layers": 2.0}, "encoder_layers"),
        ({"d_model": 0}, "d_model"),
        ({"d_model": None}, "d_model"),
        ({"d_model": 10**30}, "d_model"),
        ({"encoder_ffn_dim": -1}, "encoder_ffn_dim"),
        ({"encoder_attention_heads": 0}, "encoder_attention_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"pad_token_id": 50}, "pad_token_id"),
        ({"pad_token_id": -1}, "pad_token_id"),
        ({"frobnicate": 1}, "frobnicate"),
    ],
)
def test_config_that_cannot_be_built_is_refused_by_name(change: Config, named: str) -> None:
    with pytest.raises(LdmrtError, match=f"^text_encoder: .*{named}"):
        build("text_encoder", "LDMBertModel", SMALL | {"num_hidden_layers": 3} | change)


def test_more_layers_than_tensors_are_refused_before_they_are_built() -> None:
    with pytest.raises(LdmrtError, match="invalid encoder_layers"):
        check_depth("text_encoder", SMALL | {"encoder_layers": 10**9}, lambda: 34)


def test_sizes_that_no_memory_holds_are_refused() -> None:
    with pytest.raises(LdmrtError, match=r"^text_encoder: "):
        build("text_encoder", "LDMBertModel", SMALL | {"d_model": 2**61})
