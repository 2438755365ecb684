"""The U-Net without context against diffusers' UNet2DModel with the same weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from safetensors.torch import save_file
from torch import Tensor

from ldmrt.model import UNet, UNetConfig
from ldmrt.model.checkpoint.checkpoint import build, class_of
from ldmrt.model.checkpoint.folder import part_of_folder
from ldmrt.model.config import to_config
from ldmrt.model.networks.plain_unet import PlainUNet, PlainUNetConfig
from ldmrt.model.weights.weights import fill, match
from ldmrt.runtime import LdmrtError

from ...support.pipelines import randomise
from .unets import CLOSE

ATTN, PLAIN = ("AttnDownBlock2D", "DownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
TWO: dict[str, Any] = {
    "down_block_types": ATTN[::-1],
    "up_block_types": PLAIN,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
FOUR: dict[str, Any] = {"block_out_channels": (8, 16, 16, 24), "norm_num_groups": 4, "layers_per_block": 2}
RESNETS: dict[str, Any] = TWO | {  # the first level has no attention and keeps its convolutions
    "down_block_types": (ATTN[1], ATTN[0], ATTN[0]),
    "up_block_types": (PLAIN[0], PLAIN[0], PLAIN[1]),
    "block_out_channels": (16, 32, 24),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "two levels": TWO,
    "two layers": TWO | {"layers_per_block": 2},
    "google/ddpm-cifar10-32": FOUR
    | {
        "down_block_types": (ATTN[1], ATTN[0], ATTN[1], ATTN[1]),
        "up_block_types": (PLAIN[1], PLAIN[1], PLAIN[0], PLAIN[1]),
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
    },
    "CompVis/ldm-celebahq-256": FOUR | {"attention_head_dim": 4},  # the blocks are the default
    "CompVis/ldm-super-resolution-4x-openimages": FOUR
    | {"in_channels": 6, "out_channels": 3, "attention_head_dim": 8, "sample_size": 64},
    "learned variance, scale and shift": TWO | {"out_channels": 6, "resnet_time_scale_shift": "scale_shift"},
    "scale and shift, and a norm in the middle": TWO
    | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "other groups in the middle": TWO | {"attn_norm_num_groups": 4},
    "attention everywhere": TWO | {"down_block_types": ATTN[:1] * 2, "up_block_types": PLAIN[:1] * 2},
    "attention on the way up alone": TWO | {"down_block_types": ATTN[1:] * 2},
    "no attention in the middle": TWO | {"add_attention": False},
    "no middle": TWO | {"mid_block_type": None},
    "no attention": TWO | {"down_block_types": ATTN[1:] * 2, "up_block_types": PLAIN[1:] * 2, "add_attention": False},
    "one level": TWO | {"down_block_types": ATTN[:1], "up_block_types": PLAIN[:1], "block_out_channels": (16,)},
    "heads that do not divide": TWO | {"attention_head_dim": 5},
    "one head": TWO | {"attention_head_dim": None},
    "heads of one channel": TWO | {"attention_head_dim": 1},
    "images from 0 to 1": TWO | {"center_input_sample": True},
    "another activation": TWO | {"act_fn": "mish"},  # of the resnets alone
    "halved by resnets": RESNETS | {"downsample_type": "resnet"},
    "doubled by resnets": RESNETS | {"upsample_type": "resnet"},
    "halved and doubled by resnets, scale and shift": RESNETS
    | {"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"},
    "no padding": TWO | {"downsample_padding": 0},
    "keys of training": TWO | {"dropout": 0.3, "num_train_timesteps": 1000},
    "two sides": TWO | {"sample_size": (8, 12)},
    "a class of a table": TWO | {"num_class_embeds": 10},
    "a class of a table, of another activation": TWO | {"num_class_embeds": 10, "act_fn": "mish"},
}
TIMES = torch.tensor([0.0, 499.5, 999.0])
CLASSES = torch.tensor([9, 0, 3])


def pair(config: dict[str, Any]) -> tuple[PlainUNet, UNet2DModel]:
    """Ours, read from their whole config, and theirs."""
    torch.manual_seed(1)
    theirs = randomise(UNet2DModel(**config))
    ours = PlainUNet(PlainUNetConfig.read(json.loads(json.dumps(dict(theirs.config))))).eval()  # lists, as in a file
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def labels(config: PlainUNetConfig) -> Tensor | None:
    return None if config.num_class_embeds is None else CLASSES


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max())


# Theirs halves and doubles no side that is odd.
@pytest.mark.parametrize("size", [(8, 16), (24, 40)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_equals_diffusers(name: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(CONFIGS[name])
    ours, theirs, told = ours.double(), theirs.double(), labels(ours.config)
    sample = torch.randn(3, ours.config.in_channels, *size, generator=torch.Generator().manual_seed(2)).double()
    for rows in (3, 1):
        given = {} if told is None else {"class_labels": told[:rows]}
        expected = theirs(sample[:rows], TIMES[:rows], **given).sample
        assert relative(ours(sample[:rows], TIMES[:rows], **given), expected) <= CLOSE


@pytest.mark.parametrize("change", [{}, {"act_fn": "mish"}, {"flip_sin_to_cos": False, "freq_shift": 1}], ids=str)
@torch.no_grad()
def test_class_that_is_a_number_equals_diffusers(change: dict[str, Any]) -> None:
    ours, theirs = pair(TWO | change | {"class_embed_type": "timestep"})  # whose features theirs leaves in float32
    sample = torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(2))
    for rows in (3, 1):
        given = sample[:rows], TIMES[:rows]
        expected = theirs(*given, class_labels=TIMES[:rows].flip(0)).sample
        # the order of sums in float32, by 7e-7 in networks of this size; another activation makes 1e-2
        assert relative(ours(*given, class_labels=TIMES[:rows].flip(0)), expected) <= 1e-5


@torch.no_grad()
def test_odd_sides_equal_a_network_of_diffusers_that_takes_them() -> None:
    """Its UNet2DModel takes none, but without attention UNet2DConditionModel is the same network."""
    plain = TWO | {"down_block_types": ATTN[1:] * 2, "up_block_types": PLAIN[1:] * 2}
    ours, _ = pair(plain | {"mid_block_type": None})
    theirs = UNet2DConditionModel(**plain, mid_block_type=None, in_channels=3, out_channels=3).eval()
    theirs.load_state_dict(ours.state_dict())
    for size in ((7, 9), (13, 6)):
        sample = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(2))
        # the order of sums in float32
        assert relative(ours(sample, TIMES), theirs(sample, TIMES, torch.zeros(3, 1, 1280)).sample) <= 1e-5


@pytest.mark.parametrize("size", [(7, 9), (6, 5)], ids=str)
@pytest.mark.parametrize("name", ["CompVis/ldm-celebahq-256", "halved and doubled by resnets, scale and shift"])
@torch.no_grad()
def test_attention_takes_odd_sides(name: str, size: tuple[int, int]) -> None:
    ours, _ = pair(CONFIGS[name])
    sample = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    assert ours(sample, TIMES[:2]).shape == sample.shape


@pytest.mark.parametrize("name", ["two levels", "a class of a table"])
@torch.no_grad()
def test_every_input_matters(name: str) -> None:
    """Else the comparisons above could pass on a network that ignores it."""
    ours, _ = pair(CONFIGS[name])
    told = labels(ours.config)
    given = {"sample": torch.randn(3, 3, 8, 8), "timestep": TIMES} | ({} if told is None else {"class_labels": told})
    base = ours(**given)
    for key, value in given.items():
        changed = ours(**given | {key: value.roll(1, -1)})
        assert (changed - base).abs().max() > 1e-3 * base.abs().max(), key


@pytest.mark.parametrize("name", CONFIGS)
def test_config_written_back_makes_the_same_network_in_diffusers(name: str) -> None:
    with torch.device("meta"):
        theirs = UNet2DModel(**CONFIGS[name])
        config = PlainUNetConfig.read(dict(theirs.config))
        written = to_config("UNet2DModel", config)
        again = UNet2DModel.from_config(json.loads(json.dumps(written)))
    assert PlainUNetConfig.read(written) == config
    assert PlainUNetConfig.read(CONFIGS[name]) == config
    kept = {key: value for key, value in theirs.config.items() if not key.startswith("_") and key != "dropout"}
    assert {key: again.config[key] for key in kept} == kept | {
        key: list(value) for key, value in kept.items() if isinstance(value, tuple)
    }
    assert written.keys() <= {"_class_name", *kept}
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


def test_defaults_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        theirs = UNet2DModel()
    assert PlainUNetConfig.read(dict(theirs.config)) == PlainUNetConfig() == PlainUNetConfig.read({})


def test_checkpoints_build_it_by_the_name_of_diffusers_class() -> None:
    network = build("unet", "UNet2DModel", TWO)
    assert isinstance(network, PlainUNet)
    assert class_of(network) == "UNet2DModel"


@torch.no_grad()
def test_old_names_of_projections_are_read_as_diffusers_reads_them(tmp_path: Path) -> None:
    _, theirs = pair(FOUR)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = theirs.state_dict()
    for key in list(state):
        for new, old in names.items():
            if f".{new}." in key:
                state[key.replace(f".{new}.", f".{old}.")] = state.pop(key)
    assert sum(".proj_attn." in key for key in state) == 2 * (3 * 5 + 1)  # a weight and a bias for each attention
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(dict(theirs.config)))
    read = UNet2DModel.from_pretrained(tmp_path).state_dict()
    tensors = part_of_folder("unet", tmp_path)
    ours = build("unet", "UNet2DModel", json.loads((tmp_path / "config.json").read_text()))
    filled = fill("unet", ours, match("unet", ours, tensors), tensors, torch.float32).state_dict()
    assert filled.keys() == read.keys()
    for key, value in filled.items():
        assert torch.equal(value, read[key]), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_embedding_type": None}, "time_embedding_type"),
        ({"time_embedding_type": "learned"}, "time_embedding_type"),
        ({"time_embedding_dim": 64}, "time_embedding_dim"),
        ({"downsample_type": "fir"}, "downsample_type"),
        ({"upsample_type": "fir"}, "upsample_type"),
        ({"mid_block_scale_factor": 0}, "mid_block_scale_factor"),
        ({"mid_block_scale_factor": "2"}, "mid_block_scale_factor"),
        ({"class_embed_type": "identity"}, "class_embed_type"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift"),
        (
            {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]},
            "DownBlock2D in down.* combined with SkipDownBlock2D",
        ),
        ({"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}, "CrossAttnUpBlock2D"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type"),
        ({"attention_head_dim": 33}, "block_out_channels 32 cannot be split.*attention_head_dim"),
        ({"attention_head_dim": 0}, "attention_head_dim"),
        ({"attention_head_dim": [4, 8]}, "attention_head_dim"),
        ({"attn_norm_num_groups": 5}, "block_out_channels 32 cannot be split.*attn_norm_num_groups, 5"),
        ({"attn_norm_num_groups": 0}, "attn_norm_num_groups"),
        ({"layers_per_block": [1, 1]}, "layers_per_block"),
        ({"norm_num_groups": None}, "norm_num_groups"),
        ({"norm_num_groups": 5}, "block_out_channels 16 cannot be split"),
        ({"freq_shift": 8}, "freq_shift"),
        ({"act_fn": "tanh"}, "act_fn"),
        ({"sample_size": [8]}, "sample_size"),
        ({"cross_attention_dim": 8}, "cross_attention_dim"),
        ({"encoder_hid_dim": 8}, "encoder_hid_dim"),
    ],
)
def test_config_that_cannot_be_built_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in (TWO | change).items()}
    with pytest.raises(LdmrtError, match=f"(?s)unet: .*{message}"):
        PlainUNetConfig.read(config)  # before a weight is made


@pytest.mark.parametrize(("config", "told"), [(TWO, CLASSES), (TWO | {"num_class_embeds": 10}, None)])
def test_labels_that_do_not_fit_are_named(config: dict[str, Any], told: Tensor | None) -> None:
    ours, _ = pair(config)
    with pytest.raises(LdmrtError, match=r"unet: (unexpected class_labels|class_labels is missing)"):
        ours(torch.zeros(3, 3, 8, 8), TIMES, class_labels=told)


def test_blocks_without_context_are_still_unsupported_beside_a_context() -> None:
    with pytest.raises(LdmrtError, match="unsupported AttnDownBlock2D in down_block_types"):
        UNetConfig.read({"down_block_types": ["AttnDownBlock2D"], "block_out_channels": [32]})
    assert not issubclass(PlainUNet, UNet)
