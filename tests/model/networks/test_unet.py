"""The U-Net against diffusers' UNet2DConditionModel with the same weights."""

from typing import Any

import pytest
import torch

from ldmrt.model import UNetConfig
from ldmrt.model.config import to_config
from ldmrt.model.networks.configs.context_config import NEUTRAL
from ldmrt.runtime import LdmrtError

from .unets import CLOSE, CROSS, PLAIN, THREE, TWO, difference, pair

CONFIGS: dict[str, dict[str, Any]] = {
    "two levels": TWO,
    "two layers": TWO | {"layers_per_block": 2},
    "three levels": THREE,
    "one level": TWO
    | {"down_block_types": CROSS[:1], "up_block_types": PLAIN[:1], "block_out_channels": (16,), "layers_per_block": 2},
    "attention everywhere": TWO | {"down_block_types": CROSS[:1] * 2, "up_block_types": PLAIN[:1] * 2},
    "attention in the deep level": TWO | {"down_block_types": CROSS[::-1], "up_block_types": PLAIN},
    "linear projection": TWO | {"use_linear_projection": True},
    "per-level heads": THREE | {"attention_head_dim": (2, 4, 8)},
    "per-level transformer depths": THREE | {"transformer_layers_per_block": (1, 2, 3)},
    "per-level layers": THREE | {"layers_per_block": (1, 2, 1)},
    "depths of each layer, upwards too": THREE
    | {
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, (2, 1), (0, 2)),
        "reverse_transformer_layers_per_block": (1, (1, 2, 1), (0, 1, 2)),
    },
    "heads that do not divide": TWO | {"attention_head_dim": 3},
    "context given per level": THREE
    | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": (7, 24, 24),  # the first has no attention
    },
    "no attention in the middle": TWO | {"mid_block_type": "UNetMidBlock2D"},
    "attention to the context alone": TWO | {"only_cross_attention": True},  # but in the middle
    "a key of other middle blocks": TWO | {"mid_block_only_cross_attention": True},
    "attention to the context alone in some levels": THREE
    | {
        "down_block_types": CROSS[:1] * 3,
        "up_block_types": PLAIN[:1] * 3,
        "only_cross_attention": (True, False, True),
    },
    "time by scale and shift": TWO | {"resnet_time_scale_shift": "scale_shift"},
    "time by scale and shift, of another activation": TWO
    | {"resnet_time_scale_shift": "scale_shift", "act_fn": "mish"},
    "no middle": TWO | {"mid_block_type": None},
    "no attention at all": TWO
    | {"down_block_types": CROSS[1:] * 2, "up_block_types": PLAIN[1:] * 2, "mid_block_type": "UNetMidBlock2D"},
    "seventeen channels": TWO | {"block_out_channels": (17, 34), "norm_num_groups": 17},
    "five channels in": TWO | {"in_channels": 5},
    "eight channels in": TWO | {"in_channels": 8},
    **{act: TWO | {"act_fn": act} for act in ("swish", "mish", "gelu", "relu", "SiLU", "MISH")},
    "activations of the time": TWO | {"time_embedding_act_fn": "mish", "timestep_post_act": "gelu"},
    "a key of training": TWO | {"dropout": 0.3},
    "no side": TWO | {"sample_size": None},
    "two sides": TWO | {"sample_size": (8, 12)},
    "sine first": TWO | {"flip_sin_to_cos": False},
    "frequency shift": TWO | {"freq_shift": 1},
    "other padding, eps and channels": TWO
    | {"downsample_padding": 0, "norm_eps": 1e-3, "in_channels": 6, "out_channels": 5},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers(name: str) -> None:
    ours, theirs = pair(CONFIGS[name])
    timesteps = torch.tensor([0, 1, 999])  # a batch, one time each, on a latent that is not square
    assert difference(ours, theirs, (8, 12), timesteps) <= CLOSE
    assert difference(ours, theirs, (7, 9), timesteps) <= CLOSE  # sides that halving does not divide
    assert UNetConfig.read(to_config("UNet2DConditionModel", ours.config)) == ours.config


def test_equals_diffusers_at_times_between_the_steps() -> None:
    ours, theirs = pair(TWO)
    assert difference(ours, theirs, (4, 4), torch.tensor([0.25, 499.5])) <= CLOSE


def test_every_input_matters() -> None:
    """Else the comparisons above could pass on a network that ignores its time or its context."""
    ours, _ = pair(TWO)
    generator = torch.Generator().manual_seed(3)
    sample, context = (torch.randn(*shape, generator=generator).double() for shape in ((1, 4, 4, 4), (1, 5, 24)))
    with torch.no_grad():
        base = ours(sample, torch.tensor([10.0]), context)
        for changed in (
            ours(sample, torch.tensor([11.0]), context),
            ours(sample, torch.tensor([10.0]), context.roll(1, 2)),
            ours(sample.roll(1, 3), torch.tensor([10.0]), context),
        ):
            assert (changed - base).abs().max() > 1e-3 * base.abs().max()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
        ({"up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D"]}, "SimpleCrossAttnUpBlock2D"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"class_embed_type": "simple_projection"}, "class_embed_type"),
        ({"class_embed_type": "identity"}, "class_embed_type"),
        ({"class_embeddings_concat": True}, "class_embeddings_concat"),
        ({"num_class_embeds": 0}, "num_class_embeds"),
        ({"num_class_embeds": "ten"}, "num_class_embeds"),
        ({"only_cross_attention": [True]}, "config has a list that does not fit block_out_channels"),
        ({"only_cross_attention": "yes"}, "only_cross_attention"),
        ({"mid_block_only_cross_attention": "yes"}, "mid_block_only_cross_attention"),
        ({"encoder_hid_dim": 64}, "encoder_hid_dim"),
        ({"attention_type": "gated"}, "attention_type"),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift"),
        ({"resnet_time_scale_shift": None}, "resnet_time_scale_shift"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"conv_in_kernel": 1}, "conv_in_kernel"),
        ({"act_fn": "tanh"}, "act_fn"),
        ({"act_fn": None}, "act_fn"),
        ({"time_embedding_act_fn": "tanh"}, "time_embedding_act_fn"),
        ({"timestep_post_act": "tanh"}, "timestep_post_act"),
        ({"flip_sin_to_cos": "yes"}, "flip_sin_to_cos"),  # it would be sine first
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"norm_eps": 1e300}, "norm_eps"),
        ({"norm_eps": 10**400}, "norm_eps"),
        ({"freq_shift": 8}, "freq_shift"),  # of 8 frequencies: a division by zero
        ({"freq_shift": -(10**9)}, "freq_shift"),
        ({"freq_shift": float("inf")}, "freq_shift"),
        ({"downsample_padding": 10**6}, "downsample_padding"),
        ({"downsample_padding": -1}, "downsample_padding"),
        ({"norm_num_groups": 10**30}, "norm_num_groups"),
        ({"sample_size": [8]}, "sample_size"),
        ({"sample_size": [8, 0]}, "sample_size"),
        ({"unheard_of": False}, "unheard_of"),
        ({"addition_embed_type": "text"}, "addition_embed_type"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        ({"addition_embed_type": "text_time", "addition_time_embed_dim": 8}, "projection_class_embeddings_input_dim"),
        ({"time_cond_proj_dim": 0}, "time_cond_proj_dim"),
        ({"frobnicate": True}, "frobnicate"),
        ({"block_out_channels": [16, 30]}, "block_out_channels 30"),
        ({"attention_head_dim": [2, 33]}, "block_out_channels 32"),
        ({"block_out_channels": [16, 32, 32]}, "down_block_types"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types"),
        ({"attention_head_dim": [2, 2, 2]}, "config has a list that does not fit block_out_channels"),
        ({"layers_per_block": [1, 1, 1]}, "config has a list that does not fit block_out_channels"),
        ({"transformer_layers_per_block": [1]}, "config has a list that does not fit block_out_channels"),
        ({"transformer_layers_per_block": [[1], 1]}, "transformer_layers_per_block"),  # up has a layer more
        ({"transformer_layers_per_block": [-1, 1]}, "transformer_layers_per_block"),
        ({"reverse_transformer_layers_per_block": [1, 1, 1]}, "config has a list that does not fit block_out_channels"),
        ({"norm_num_groups": 0}, "norm_num_groups"),
        ({"attention_head_dim": 0}, "attention_head_dim"),
        ({"norm_num_groups": None}, "unet"),
        ({"block_out_channels": "wide"}, "unet"),
        ({"cross_attention_dim": [24, 25]}, "cross_attention_dim"),
        ({"cross_attention_dim": ["wide", "wide"]}, "cross_attention_dim"),
        ({"cross_attention_dim": [24]}, "config has a list that does not fit block_out_channels"),
    ],
)
def test_config_that_cannot_be_built_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in (TWO | change).items()}
    with pytest.raises(LdmrtError, match=named):
        UNetConfig.read(config)  # before a weight is made


@pytest.mark.parametrize(
    "key", ["dropout", "dual_cross_attention", "resnet_skip_time_act", "use_linear_projection", "unheard_of"]
)
def test_a_null_asks_for_nothing(key: str) -> None:
    assert UNetConfig.read({**TWO, key: None}) == UNetConfig.read(TWO)


@pytest.mark.parametrize("key", ["flip_sin_to_cos", "use_linear_projection"])
def test_a_null_in_place_of_a_truth_is_false(key: str) -> None:
    assert UNetConfig.read({**TWO, key: None}) == UNetConfig.read({**TWO, key: False})


@pytest.mark.parametrize("key", ["mid_block_scale_factor", "addition_embed_type_num_heads"])
def test_a_list_asks_for_nothing_where_each_of_it_does(key: str) -> None:
    nothing = NEUTRAL[key]
    assert UNetConfig.read({**TWO, key: [nothing, nothing]}) == UNetConfig.read(TWO)
    for asked in ([nothing, "more"], []):
        with pytest.raises(LdmrtError, match=key):
            UNetConfig.read({**TWO, key: asked})


@pytest.mark.parametrize("key", ["dropout", "gradient_checkpointing", "_name_or_path", "use_ema_warmup", "torch_dtype"])
@pytest.mark.parametrize("value", [0.5, True, None, "anything"])
def test_keys_that_do_nothing_when_a_network_is_run(key: str, value: Any) -> None:
    assert UNetConfig.read({**TWO, key: value}) == UNetConfig.read(TWO)
