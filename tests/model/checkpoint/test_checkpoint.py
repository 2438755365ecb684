"""Checkpoints of every family against diffusers' pipelines, both ways."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from ldmrt.model import Checkpoint, load
from ldmrt.model.checkpoint.checkpoint import class_of, with_scaling_factor
from ldmrt.model.checkpoint.load import load_autoencoder, load_controlnet
from ldmrt.model.config import to_config
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from ...support.families import FAMILIES, LENGTH
from ...support.pipelines import save_pipeline

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@dataclass(frozen=True)
class Saved:
    """A family's folder as diffusers writes it, and what either side loads from it. Change none of them."""

    name: str
    folder: Path
    ours: Checkpoint
    theirs: Any


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = save_pipeline(request.param, tmp_path_factory.mktemp("family") / request.param)
    return Saved(request.param, folder, load(folder), opened(folder, request.param))


def opened(folder: Path, name: str) -> Any:
    """diffusers' pipeline."""
    return getattr(diffusers, FAMILIES[name].pipeline).from_pretrained(folder)


def same(ours: Any, theirs: Any) -> bool:
    """Equal weights under equal names."""
    state, expected = ours.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys()
    return all(torch.equal(value, expected[key]) for key, value in state.items())


def plain(config: Any) -> dict[str, Any]:
    """A config of diffusers or transformers as JSON has it, without the notes."""
    described = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    notes = ("architectures", "dtype", "torch_dtype", "transformers_version")
    return json.loads(json.dumps({k: v for k, v in described.items() if k[0] != "_" and k not in notes}))


def test_what_diffusers_saves_loads(saved: Saved) -> None:
    folder, ours, theirs = saved.folder, saved.ours, saved.theirs
    written = json.loads((folder / "model_index.json").read_text())
    parts = {part for part, value in written.items() if isinstance(value, list) and value[0]}
    assert {*ours.networks, *ours.tokenizers, "scheduler"} == parts
    assert all(same(network, getattr(theirs, part)) for part, network in ours.networks.items())
    assert {key: ours.index[key] for key in written if key not in parts} == {
        key: value for key, value in written.items() if key not in parts
    }
    assert ours.controls == {}
    corrected = plain(theirs.scheduler.config)  # by diffusers' pipeline, where the file is outdated
    assert {**corrected, **ours.scheduler, "_class_name": ""} == {**ours.scheduler, **corrected, "_class_name": ""}
    for part, files in ours.tokenizers.items():
        texts = ["a red apple, noto style", "two pears " * LENGTH, ""]
        ids = getattr(theirs, part)(texts, padding="max_length", truncation=True, return_tensors="np").input_ids
        with pytest.warns(UserWarning, match="skipped"):
            assert Tokenizer(files)(texts).tolist() == ids.tolist()


def test_what_ours_saves_diffusers_loads(saved: Saved, tmp_path: Path) -> None:
    """The same weights, configs, padding and fields of the pipeline as from the folder that diffusers wrote."""
    saved.ours.save(tmp_path / "ours")
    first, second = saved.theirs, opened(tmp_path / "ours", saved.name)
    assert type(second) is type(first)
    assert {key: getattr(value, "pad_token", type(value)) for key, value in second.components.items()} == {
        key: getattr(value, "pad_token", type(value)) for key, value in first.components.items()
    }
    for part in saved.ours.networks:
        assert same(getattr(second, part), getattr(first, part))
        assert plain(getattr(second, part).config) == plain(getattr(first, part).config)
    assert plain(second.scheduler.config).items() >= plain(first.scheduler.config).items()
    for key in ("force_zeros_for_empty_prompt", "requires_aesthetics_score"):
        assert second.config.get(key) == first.config.get(key)


def test_save_load_save_gives_the_same_bytes(saved: Saved, tmp_path: Path) -> None:
    saved.ours.save(tmp_path / "one")
    load(tmp_path / "one").save(tmp_path / "two")
    names = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()} == names
    assert {Path("model_index.json"), Path(UNET), Path(VAE)} < names
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


@torch.no_grad()
def test_computes_what_diffusers_does(checkpoint: Path) -> None:
    """One family is enough here: every network is compared in a test of its own."""
    ours, theirs = load(checkpoint), diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    text = ["a red apple, noto style", "two pears"]
    ids = theirs.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    latent = torch.randn(2, ours.unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    context, t = theirs.text_encoder(ids).last_hidden_state, torch.tensor([3, 700])
    picture = theirs.vae.decode(latent).sample
    for found, expected in (
        (ours.text_encoders["text_encoder"](ids).last_hidden_state, context),
        (ours.unet(latent, t, context), theirs.unet(latent, t, context).sample),
        (ours.vae.decode(latent), picture),
        (ours.vae.encode(picture), theirs.vae.encode(picture).latent_dist.parameters),
    ):
        # float32 sums in another order; the weights are the same to the bit
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_half_precision_on_disk(checkpoint: Path, tmp_path: Path) -> None:
    """Saved and loaded in whichever precision is asked for; what is stored stays as it is where none is."""
    load(checkpoint).save(tmp_path, torch.float16)
    whole, loaded, stored = load(checkpoint), load(tmp_path), load(tmp_path, dtype=None)
    files = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}
    for part, network in whole.networks.items():
        assert {value.dtype for value in load_file(tmp_path / files[part]).values()} == {torch.float16}
        single, half = loaded.networks[part].state_dict(), stored.networks[part].state_dict()
        for key, value in network.state_dict().items():
            assert torch.equal(single[key], value.half().float())
            assert torch.equal(half[key], value.half())
    assert CLIPTextModel.from_pretrained(tmp_path / "text_encoder").dtype == torch.float16
    bf16 = load(checkpoint, dtype=torch.bfloat16).unet.conv_in.weight
    assert torch.equal(bf16, whole.unet.conv_in.weight.bfloat16())


def test_nothing_is_left_on_the_meta_device(saved: Saved) -> None:
    for network in saved.ours.networks.values():
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        assert all(tensor.device.type == "cpu" for tensor in tensors.values())
        assert not network.training
        positions = [value for name, value in network.named_buffers() if name.endswith("position_ids")]
        assert [value.tolist() for value in positions] == [[list(range(LENGTH))] for _ in positions]


def test_what_is_loaded_can_be_changed_and_the_file_stays(checkpoint: Path) -> None:
    """The weights are the file's own pages until they are written to."""
    before = (checkpoint / UNET).read_bytes()
    ours = load(checkpoint)
    with torch.no_grad():
        ours.unet.conv_in.weight.add_(1.0)
    assert (checkpoint / UNET).read_bytes() == before
    assert torch.equal(load(checkpoint).unet.conv_in.weight + 1.0, ours.unet.conv_in.weight)


def test_saving_in_the_place_that_was_loaded(checkpoint: Path, tmp_path: Path) -> None:
    """The file that the weights are mapped from is replaced, not written over."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    ours = load(folder)
    with torch.no_grad():
        ours.unet.conv_in.bias.add_(1.0)
    ours.save(folder)
    again = load(folder)
    assert all(same(network, again.networks[part]) for part, network in ours.networks.items())


def test_parts_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    whole = load(checkpoint)
    assert same(load_autoencoder(checkpoint), whole.vae)
    assert with_scaling_factor(whole.vae, 0.25).config.scaling_factor == 0.25
    theirs = diffusers.ControlNetModel.from_unet(
        diffusers.UNet2DConditionModel.from_pretrained(checkpoint / "unet"), conditioning_embedding_out_channels=(4, 8)
    )
    theirs.save_pretrained(tmp_path / "controlnet")
    ours = load_controlnet(tmp_path / "controlnet")
    assert same(ours, theirs)
    assert plain(to_config(class_of(ours), ours.config)).items() <= plain(theirs.config).items()


def rename_attention(state: dict[str, torch.Tensor]) -> None:
    """To the names of diffusers before 0.17."""
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for key in list(state):
        for new, old in names.items():
            if new in key:
                state[key.replace(new, old)] = state.pop(key)


def prefix(state: dict[str, torch.Tensor]) -> None:
    """To the names of transformers before 5, with the tensor that it saved though it is no weight."""
    for key in list(state):
        state[f"text_model.{key.removeprefix('text_model.')}"] = state.pop(key)
    state["text_model.embeddings.position_ids"] = torch.arange(16)[None]


def drop_prefix(state: dict[str, torch.Tensor]) -> None:
    """To the names that transformers 5 gives a text encoder without projection."""
    for key in list(state):
        state[key.removeprefix("text_model.")] = state.pop(key)


EMA = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 37000, "power": 0.667}
EMA |= {"update_after_step": 0, "use_ema_warmup": False}
OLDER = {
    "text encoder of transformers 4": (TEXT, prefix, {}),
    "text encoder of transformers 5": (TEXT, drop_prefix, {}),
    "autoencoder of 2022": (VAE, rename_attention, {}),
    "2.1: attention in float32": (UNET, lambda state: None, {"upcast_attention": True}),
    "XL: nothing is said of it": (UNET, lambda state: None, {"upcast_attention": None}),
    "XL inpainting: notes of its training": (UNET, lambda state: None, EMA),
}


@pytest.mark.parametrize("name", OLDER)
def test_what_diffusers_loads_loads(name: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    file, change, more = OLDER[name]
    weights, config = folder / file, folder / file.split("/")[0] / "config.json"
    state = load_file(weights)
    change(state)
    save_file(state, weights, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | more))
    ours, theirs = load(folder), diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert all(same(network, getattr(theirs, part)) for part, network in ours.networks.items())


def test_tokenizer_of_transformers_5(checkpoint: Path, tmp_path: Path) -> None:
    """Nothing but tokenizer.json and its config."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    tokenizer = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).tokenizer
    shutil.rmtree(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer")
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    assert (folder / "tokenizer" / "tokenizer.json").is_file()
    text = ["a red apple, noto style"]
    found = Tokenizer(load(folder).tokenizers["tokenizer"])(text)
    assert found.tolist() == tokenizer(text, padding="max_length", return_tensors="np").input_ids.tolist()


def test_prediction_of_a_folder_can_be_told(checkpoint: Path) -> None:
    assert load(checkpoint).scheduler["prediction_type"] == "epsilon"
    assert load(checkpoint, prediction_type="v_prediction").scheduler["prediction_type"] == "v_prediction"
    with pytest.raises(LdmrtError, match="no prediction_type 'x0'"):
        load(checkpoint, prediction_type="x0")


def edited(folder: Path, change: dict[str, Any]) -> Checkpoint:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return load(folder)


def test_what_no_picture_needs_is_left_out(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    loaded = edited(
        folder,
        {
            "_name_or_path": "/somewhere/on/another/machine",
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "requires_safety_checker": True,
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "tokenizer": ["transformers", "CLIPTokenizerFast"],
        },
    )
    nothing = [None, None]
    assert loaded.index == {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": nothing,
        "safety_checker": nothing,
        "requires_safety_checker": False,
    }
    loaded.save(tmp_path / "saved")
    assert "another" not in (tmp_path / "saved" / "model_index.json").read_text()
    diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"text_encoder": ["transformers", "T5EncoderModel"]},
            "text_encoder: unsupported T5 text encoder beside a U-Net",
        ),
        (
            {"vae": ["diffusers", "ConsistencyDecoderVAE"]},
            "vae: unsupported ConsistencyDecoderVAE in .*; expected AutoencoderKL or",
        ),
        ({"prior": ["diffusers", "PriorTransformer"]}, "unsupported prior in .*; found PriorTransformer"),
        ({"unet": [None, None]}, "unet: model_index.json names no unet"),
        ({"scheduler": [None, None]}, "scheduler: .* names no scheduler"),
        ({"tokenizer": [None, None]}, "tokenizer: model_index.json names no tokenizer; expected one for text_encoder"),
        ({"text_encoder": [None, None]}, "cross_attention_dim .*; expected 0; found 24"),
        ({"unet": ["diffusers"]}, "invalid unet"),
        ({"vae": ["diffusers", 7]}, "invalid vae"),
    ],
)
def test_what_is_not_here_is_refused(change: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / UNET).unlink()  # said before any weight is looked for
    with pytest.raises(LdmrtError, match=message):
        edited(folder, change)


def test_sizes_of_the_second_text_encoder(tmp_path: Path) -> None:
    """The refiner is told five numbers of the picture, the base model six."""
    folder = save_pipeline("sdxl-refiner", tmp_path / "refiner")
    with pytest.raises(LdmrtError, match="does not fit the text encoder and 6 sizes; expected 68; found 60"):
        edited(folder, {"requires_aesthetics_score": False})
