"""ControlNet against diffusers' ControlNetModel with the same weights."""

from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from torch import Tensor

from ldmrt.model import ControlNet, ControlNetConfig
from ldmrt.model.config import to_config
from ldmrt.runtime import LdmrtError

from ...support.pipelines import randomise

SMALL: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "conditioning_embedding_out_channels": (4, 6),
}
XL: dict[str, Any] = SMALL | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (16, 16, 32),
    "attention_head_dim": (1, 2, 4),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 20,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "SD 1": SMALL,
    "SD 2": SMALL | {"attention_head_dim": (2, 4), "use_linear_projection": True},
    "heads by their right name": SMALL | {"num_attention_heads": (2, 4)},
    "XL": XL,
    **{act: SMALL | {"act_fn": act} for act in ("mish", "gelu", "relu")},
    "XL of another activation": XL | {"act_fn": "mish"},  # but for the additions to the time
    "two layers": SMALL | {"layers_per_block": 2},
    "blue first": SMALL | {"controlnet_conditioning_channel_order": "bgr"},
    "grey picture, six latent channels": SMALL | {"conditioning_channels": 1, "in_channels": 6},
    "four strides": SMALL | {"conditioning_embedding_out_channels": (2, 4, 4, 6, 8)},
    "attention to the context alone": SMALL | {"only_cross_attention": True},  # but for the middle
    "attention to the context alone in a level": XL | {"only_cross_attention": (False, True, False)},
    "time by scale and shift": SMALL | {"resnet_time_scale_shift": "scale_shift"},
    "no attention in the middle": SMALL | {"mid_block_type": "UNetMidBlock2D"},
    "sine first, shifted": SMALL | {"flip_sin_to_cos": False, "freq_shift": 1},
    "other padding and eps": SMALL | {"downsample_padding": 0, "norm_eps": 1e-3},
}
TIMES = torch.tensor([0.0, 499.25, 999.0])
# In float64 another order of sums makes 1e-14, and a norm's eps of 1e-6 for 1e-5 makes 1e-7 or more.
CLOSE = 1e-9


def pair(config: dict[str, Any]) -> tuple[ControlNet, ControlNetModel]:
    """Ours, read from their whole config, and theirs; the convolutions that begin at zero are not zero."""
    torch.manual_seed(1)
    theirs = randomise(ControlNetModel(**config).double())
    ours = ControlNet(ControlNetConfig.read(dict(theirs.config))).double().eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(config: ControlNetConfig, size: tuple[int, int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    given = {
        "sample": normal(3, config.in_channels, *size),
        "timestep": TIMES,
        "context": normal(3, 5, config.cross_attention_dim),
        "cond": normal(3, config.conditioning_channels, *(side * config.factor for side in size)),
    }
    if config.addition_embed_type:
        given |= {"text_embeds": normal(3, 20), "time_ids": torch.arange(18.0).reshape(3, 6) * 64.5}
    return given


def residuals(ours: ControlNet, given: dict[str, Any], scale: Tensor) -> list[Tensor]:
    down, middle = ours(**given, scale=scale)
    return [*down, middle]


def expected(theirs: ControlNetModel, given: dict[str, Any], scale: float) -> list[Tensor]:
    added = {key: given[key] for key in ("text_embeds", "time_ids") if key in given}
    out = theirs(
        given["sample"], given["timestep"], given["context"], given["cond"], scale, added_cond_kwargs=added or None
    )
    return [*out.down_block_res_samples, out.mid_block_res_sample]


def assert_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert [one.shape for one in found] == [one.shape for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= CLOSE * other.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_equals_diffusers(name: str) -> None:
    ours, theirs = pair(CONFIGS[name])
    for size in ((8, 12), (7, 9)):
        given = inputs(ours.config, size)
        assert_close(residuals(ours, given, torch.tensor(0.75)), expected(theirs, given, 0.75))
    written = to_config("ControlNetModel", ours.config)
    assert ControlNetConfig.read(written) == ours.config
    again = ControlNetModel.from_config(written).state_dict()
    assert {key: value.shape for key, value in again.items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@torch.no_grad()
def test_scale_is_one_for_all_or_one_for_each() -> None:
    ours, theirs = pair(SMALL)
    given = inputs(ours.config, (4, 4))
    rows = [0.0, 0.5, 2.0]
    each = [expected(theirs, given, scale) for scale in rows]
    wanted = [torch.stack([each[row][i][row] for row in range(3)]) for i in range(len(each[0]))]
    assert_close(residuals(ours, given, torch.tensor(rows)), wanted)


@torch.no_grad()
def test_half_precision_equals_diffusers() -> None:
    ours, theirs = pair(XL)
    ours, theirs = ours.half(), theirs.half()
    given = {
        key: value if key in ("timestep", "time_ids") else value.half()
        for key, value in inputs(ours.config, (7, 9)).items()
    }
    found, wanted = residuals(ours, given, torch.tensor(0.7)), expected(theirs, given, 0.7)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float16
        # the same operations in the same precision, but for the layout of some; a scale rounded to half makes 2**-11
        assert (one - other).abs().max() <= 2**-12 * other.abs().max()


@torch.no_grad()
def test_every_input_matters() -> None:
    """Else the comparisons above could pass on a network that ignores it."""
    ours, _ = pair(XL)
    given = inputs(ours.config, (4, 4))
    base = residuals(ours, given, torch.ones(()))
    for key, value in given.items():
        changed = residuals(ours, given | {key: value.roll(1, -1)}, torch.ones(()))
        assert (changed[-1] - base[-1]).abs().max() > 1e-3 * base[-1].abs().max(), key


def test_missing_condition_is_named() -> None:
    ours, _ = pair(XL)
    given = inputs(ours.config, (4, 4))
    del given["time_ids"]
    with pytest.raises(LdmrtError, match="controlnet: time_ids is missing"):
        ours(**given, scale=torch.ones(()))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"global_pool_conditions": True}, "global_pool_conditions"),
        ({"controlnet_conditioning_channel_order": "grb"}, "controlnet_conditioning_channel_order"),
        ({"conditioning_embedding_out_channels": []}, "conditioning_embedding_out_channels"),
        ({"conditioning_embedding_out_channels": None}, "conditioning_embedding_out_channels"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"addition_embed_type": "text"}, "addition_embed_type"),
        ({"encoder_hid_dim": 8}, "encoder_hid_dim"),
        ({"num_control_type": 6}, "num_control_type"),  # ControlNetUnionModel
        ({"conditioning_channels": 0}, "conditioning_channels"),
    ],
)
def test_config_that_cannot_be_built_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(LdmrtError, match=f"controlnet: .*{named}"):
        ControlNetConfig.read(SMALL | change)
