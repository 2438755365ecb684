"""Single files of every family, against diffusers' own recognition, configs and conversion of the same file."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from ldmrt.model import load
from ldmrt.model.checkpoint import single_file
from ldmrt.model.checkpoint.checkpoint import build
from ldmrt.model.checkpoint.families import Family, recognise
from ldmrt.model.checkpoint.single_file import read_file, split, tokenizers
from ldmrt.model.weights.lazy import Lazy
from ldmrt.model.weights.weights import match
from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from ...support.families import CAPTIONS, END
from ...support.ldm import LEFT_OVER, NAMES, as_written, networks

# What diffusers calls each family, and what the programs that wrote its files say of the model in their configs:
# github.com/CompVis/stable-diffusion, Stability-AI/stablediffusion, Stability-AI/generative-models.
KNOWN_AS = {
    "1.x": "v1", "1.x inpainting": "inpainting", "2.x": "v2", "2.x inpainting": "inpainting_v2", "XL": "xl_base",
    "XL inpainting": "xl_inpaint", "XL refiner": "xl_refiner",
}  # fmt: skip
UNET_1 = {
    "in_channels": 4, "out_channels": 4, "model_channels": 320, "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4], "num_heads": 8, "transformer_depth": 1, "context_dim": 768,
}  # fmt: skip
UNET_2 = {key: value for key, value in UNET_1.items() if key != "num_heads"} | {
    "num_head_channels": 64, "use_linear_in_transformer": True, "context_dim": 1024,
}  # fmt: skip
UNET_XL = UNET_2 | {
    "adm_in_channels": 2816, "num_classes": "sequential", "attention_resolutions": [4, 2], "channel_mult": [1, 2, 4],
    "transformer_depth": [1, 2, 10], "context_dim": 2048,
}  # fmt: skip
UNET_REFINER = UNET_XL | {
    "adm_in_channels": 2560, "model_channels": 384, "channel_mult": [1, 2, 4, 4], "transformer_depth": 4,
    "context_dim": [1280] * 4,
}  # fmt: skip
NINE = {"in_channels": 9}
UNETS = {
    "1.x": UNET_1, "1.x inpainting": UNET_1 | NINE, "2.x": UNET_2, "2.x inpainting": UNET_2 | NINE, "XL": UNET_XL,
    "XL inpainting": UNET_XL | NINE, "XL refiner": UNET_REFINER,
}  # fmt: skip
VAE = {"in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4}
each = pytest.mark.parametrize("name", NAMES)


@cache
def original(name: str) -> dict[str, Any]:
    """The config beside a family's file."""
    xl = name.startswith("XL")
    return {
        "model": {
            "params": {
                "network_config" if xl else "unet_config": {"params": UNETS[name]},
                "first_stage_config": {"params": {"ddconfig": VAE}},
                "scale_factor": 0.13025 if xl else 0.18215,
                "linear_start": 0.00085,
                "linear_end": 0.0120,
            }
        }
    }


@cache
def full(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The networks of a family at their real size, and its file: names and shapes alone."""
    made = networks(NAMES[name], "meta")
    return made, as_written(NAMES[name], made)


def converted(family: Family, made: dict[str, Any], file: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What diffusers makes of a file."""
    found = {
        "unet": theirs.convert_ldm_unet_checkpoint(dict(file), dict(made["unet"].config)),
        "vae": theirs.convert_ldm_vae_checkpoint(dict(file), dict(made["vae"].config)),
    }
    for part, text in family.texts.items():
        if text.names == single_file.OPEN_CLIP:
            state = theirs.convert_open_clip_checkpoint(made[part], file, prefix=text.prefix)
        else:
            state = theirs.convert_ldm_clip_checkpoint(file)
        bare = not any(key.startswith("text_model.") for key in made[part].state_dict())
        found[part] = {key.removeprefix("text_model.") if bare else key: value for key, value in state.items()}
    return found


def lazy(file: dict[str, Tensor]) -> dict[str, Lazy]:
    return {key: Lazy(tuple(value.shape), value.dtype, lambda value=value: value) for key, value in file.items()}  # type: ignore[misc]


@each
def test_recognised_as_diffusers_does(name: str) -> None:
    _, file = full(name)
    assert theirs.infer_diffusers_model_type(file) == KNOWN_AS[name]
    assert recognise(lazy(file), Path("x.safetensors")) is NAMES[name]


@each
def test_configs_are_those_that_diffusers_infers(name: str) -> None:
    """From the config of the program that wrote the file, which ours does without."""
    made, file = full(name)
    for part, infer in (
        ("unet", theirs.create_unet_diffusers_config_from_ldm),
        ("vae", theirs.create_vae_diffusers_config_from_ldm),
    ):
        expected = {key: value for key, value in infer(original(name), file).items() if value is not None}
        if name == "2.x inpainting":
            expected["sample_size"] = {"unet": 64, "vae": 512}[part]
        assert len(expected) > 8
        ours = dict(made[part].config)  # of diffusers' class, made of the row
        assert {key: listed(ours[key]) for key in expected} == expected


def listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@each
def test_scheduler_is_the_one_that_diffusers_infers(name: str) -> None:
    family = NAMES[name]
    kind = getattr(diffusers, family.scheduler["_class_name"])
    expected = theirs._legacy_load_scheduler(kind, full(name)[1], "scheduler", original_config=original(name)).config
    ours = kind.from_config(family.scheduler).config
    keys = {key for key in kind().config if not key.startswith("_")}
    assert {key: ours[key] for key in keys} == {key: expected[key] for key in keys}


@each
def test_every_weight_has_the_place_that_diffusers_gives_it(name: str) -> None:
    """At the real depth and width."""
    family, (made, file) = NAMES[name], full(name)
    for part, state in converted(family, made, file).items():
        shapes = {key: value.shape for key, value in made[part].state_dict().items()}
        assert {key: value.shape for key, value in state.items()} == shapes
    parts = split(lazy(file), family, Path("x.safetensors"))
    source = {"unet": ("UNet2DConditionModel", family.unet), "vae": ("AutoencoderKL", family.vae)}
    source |= {part: (text.kind, text.config) for part, text in family.texts.items()}
    for part, described in source.items():
        assert match(part, build(part, *described), parts[part]).keys() == made[part].state_dict().keys()


@pytest.mark.slow(minutes=0.09)
@pytest.mark.parametrize("name", ["1.x", "1.x inpainting", "2.x", "XL", "XL refiner"])
@pytest.mark.filterwarnings("ignore:.*does not say what it predicts")
def test_loads_what_diffusers_loads(name: str, narrow: dict[str, Family], vocabulary: Path, tmp_path: Path) -> None:
    family = narrow[name]
    made = networks(family)
    file = as_written(family, made)
    path = tmp_path / "model.safetensors"
    save_file({**file, **LEFT_OVER}, path)
    loaded = load(path, tokenizer=vocabulary)
    loaded.save(tmp_path / "folder")
    kind = getattr(diffusers, family.index["_class_name"])
    pipeline = kind.from_single_file(str(path), config=str(tmp_path / "folder"), local_files_only=True)
    for part, state in converted(family, made, file).items():
        ours, whole = loaded.networks[part].state_dict(), getattr(pipeline, part).state_dict()
        assert ours.keys() == state.keys() == whole.keys()
        assert all(torch.equal(ours[key], value) and torch.equal(whole[key], value) for key, value in state.items())
    assert loaded.networks.keys() == made.keys()
    assert {key: pipeline.scheduler.config[key] for key in loaded.scheduler} == loaded.scheduler


@each
def test_tokenizers_are_those_of_the_family(
    name: str, narrow: dict[str, Family], vocabulary: Path, tmp_path: Path
) -> None:
    for part, files in tokenizers(narrow[name].texts, vocabulary).items():
        for file, content in files.items():
            (tmp_path / file).write_bytes(content)
        tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
        assert tokenizer.pad_token == {"tokenizer": "!" if name[0] == "2" else END, "tokenizer_2": "!"}[part]
        ids = tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="np").input_ids
        assert Tokenizer(files)(CAPTIONS).tolist() == ids.tolist()


@pytest.fixture
def written(content: dict[str, Tensor], tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file of a narrow 1.x, and its content."""
    save_file(content, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", content


def test_ckpt_and_half_precision(written: tuple[Path, dict[str, Tensor]], vocabulary: Path, tmp_path: Path) -> None:
    """A checkpoint of Lightning holds the weights under "state_dict", beside what training remembers."""
    path, file = written
    expected = load(path, tokenizer=vocabulary)
    half = {key: value.half() for key, value in file.items()}
    training = {"epoch": 3, "global_step": 470000, "lr_schedulers": [], "callbacks": {}, "state_dict": half}
    torch.save(training, tmp_path / "model.ckpt")
    loaded = load(tmp_path / "model.ckpt", tokenizer=vocabulary)
    stored = load(tmp_path / "model.ckpt", tokenizer=vocabulary, dtype=None)
    for part, network in expected.networks.items():
        single, stayed = loaded.networks[part].state_dict(), stored.networks[part].state_dict()
        for key, value in network.state_dict().items():
            assert torch.equal(single[key], value.half().float())
            assert torch.equal(stayed[key], value.half())
    assert loaded.scheduler == expected.scheduler


def test_old_names_of_a_text_encoder(written: tuple[Path, dict[str, Tensor]], vocabulary: Path, tmp_path: Path) -> None:
    """Some files of 2022 leave a part of the names out."""
    path, file = written
    save_file({key.replace(".text_model.", "."): value for key, value in file.items()}, tmp_path / "old.safetensors")
    ours, old = (
        load(at, tokenizer=vocabulary).text_encoders["text_encoder"].state_dict()
        for at in (path, tmp_path / "old.safetensors")
    )
    assert ours.keys() == old.keys()
    assert all(torch.equal(value, old[key]) for key, value in ours.items())


def test_prediction_of_the_second(narrow: dict[str, Family], vocabulary: Path, tmp_path: Path) -> None:
    """Nothing in the file tells the models of 512 and 768 pixels apart: diffusers takes the latter."""
    path = tmp_path / "model.safetensors"
    save_file(as_written(narrow["2.x"], networks(narrow["2.x"])), path)
    with pytest.warns(LdmrtWarning, match="v_prediction is taken"):
        assert load(path, tokenizer=vocabulary).scheduler["prediction_type"] == "v_prediction"
    told = load(path, tokenizer=vocabulary, prediction_type="epsilon")
    assert told.scheduler == {**narrow["2.x"].scheduler, "prediction_type": "epsilon"}
    assert narrow["2.x"].scheduler["prediction_type"] == "v_prediction"


def test_tokenizer_of_a_whole_folder(
    written: tuple[Path, dict[str, Tensor]], vocabulary: Path, checkpoint: Path
) -> None:
    """Any pipeline's folder will do; what it says of padding is of another family."""
    path, _ = written
    (vocabulary / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    os.rename(vocabulary, vocabulary.with_name("tokenizer"))
    tokenizer = Tokenizer(load(path, tokenizer=vocabulary.parent).tokenizers["tokenizer"])
    assert tokenizer.pad == tokenizer.end


BLOCK = "model.diffusion_model.input_blocks.0.0.weight"
ERRORS = {
    "no tokenizer": (lambda s: None, {"tokenizer": None}, "a single file holds no tokenizer; .*\n  try: --tokenizer"),
    "no folder of a tokenizer": (lambda s: None, {"tokenizer": "nowhere"}, "tokenizer: missing files; .*nowhere"),
    "unknown prediction": (lambda s: None, {"prediction_type": "x0"}, "scheduler: no prediction_type 'x0'"),
    "other weights": (lambda s: s.clear() or s.update(w=torch.ones(1)), {}, "family .*; found 1 weights, such as w"),
    "channels of the input": (lambda s: s.update({BLOCK: torch.ones(8, 5, 3, 3)}), {}, r"family .*\(8, 5, 3, 3\)"),
    "no first weight": (lambda s: s.pop(BLOCK), {}, "unsupported family .*, such as cond_stage_model"),
    "unknown network": (lambda s: s.update({"control_model.x": torch.ones(1)}), {}, "unexpected .* control_model.x"),
    "unknown weight": (
        lambda s: s.update({"first_stage_model.x": torch.ones(1)}), {}, "vae: .*; found first_stage_model.x"
    ),
    "no autoencoder": (
        lambda s: [s.pop(k) for k in list(s) if "first_stage" in k], {},
        "vae: 248 tensors are missing from .*; expected first_stage_model.decoder.conv_in.bias",
    ),
    "missing weight": (
        lambda s: s.pop("model.diffusion_model.output_blocks.2.1.conv.weight"), {},
        "unet: 1 tensors are missing .*; expected model.diffusion_model.output_blocks.2.1.conv.weight",
    ),
    "misshapen weight": (
        lambda s: s.update({"model.diffusion_model.out.2.bias": torch.ones(5)}), {},
        r"unet: wrong shape of model.diffusion_model.out.2.bias .*; expected \(4,\); found \(5,\)",
    ),
    "not finite": (
        lambda s: s["first_stage_model.decoder.mid.attn_1.q.weight"].view(-1)[3:4].fill_(torch.inf), {},
        "vae: first_stage_model.decoder.mid.attn_1.q.weight in .* is not finite",
    ),
    "whole numbers": (
        lambda s: s.update({"model.diffusion_model.out.2.bias": torch.ones(4, dtype=torch.int8)}), {},
        "unet: model.diffusion_model.out.2.bias .* holds no floating-point numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, written: tuple[Path, dict[str, Tensor]], vocabulary: Path) -> None:
    path, file = written
    change, how, message = ERRORS[name]
    change(file)
    save_file(file, path)
    with pytest.raises(LdmrtError, match=message):
        load(path, **{"tokenizer": vocabulary, **how})


def test_of_another_suffix(tmp_path: Path) -> None:
    (tmp_path / "model.weights").write_bytes(b"x")
    with pytest.raises(LdmrtError, match=r"cannot read .*model.weights; expected .safetensors or .ckpt"):
        read_file(tmp_path / "model.weights")
    with pytest.raises(LdmrtError, match="a single file has no variants; found fp16"):
        load(tmp_path / "model.weights", variant="fp16")
    with pytest.raises(LdmrtError, match=r"no file .*model.ckpt"):
        load(tmp_path / "model.ckpt")
