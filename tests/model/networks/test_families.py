"""Every family of Stable Diffusion: our U-Net and autoencoder against diffusers' with the same weights."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from ldmrt.model import Autoencoder, AutoencoderConfig, ControlNet, ControlNetConfig, UNet, UNetConfig
from ldmrt.model.config import to_config

from ...support.families import FAMILIES, Family
from ...support.pipelines import networks, randomise

# Float32 on both sides: at most the order of sums differs, by 7e-7 of the largest value where it was measured. The
# networks are compared in float64 in the tests of each.
CLOSE = 1e-5
SIZES = ((8, 12), (7, 9))  # neither square, the second not divisible
TIMES = torch.tensor([0.0, 499.3, 999.0])  # each row its own, one between the steps and between halves

parametrised = pytest.mark.parametrize("name", FAMILIES)


@cache
def unets(name: str) -> tuple[UNet, UNet2DConditionModel]:
    """Ours, read from the whole config of theirs, and theirs."""
    theirs = networks(FAMILIES[name])["unet"]
    ours = UNet(UNetConfig.read(dict(theirs.config))).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(family: Family, size: tuple[int, int]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What both networks take, and what a family asks for besides: as ours takes it, and as theirs does."""
    rows, config = len(TIMES), family.unet
    both = {
        "sample": normal(rows, config.get("in_channels", 4), *size, seed=1),
        "timestep": TIMES,
        "context": normal(rows, 5, config["cross_attention_dim"], seed=2),
    }
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    if width := config.get("time_cond_proj_dim"):
        ours["timestep_cond"] = theirs["timestep_cond"] = normal(rows, width, seed=3)
    if config.get("addition_embed_type"):
        assert family.text_encoder_2 is not None
        pooled = family.text_encoder_2["projection_dim"]
        ids = (config["projection_class_embeddings_input_dim"] - pooled) // config["addition_time_embed_dim"]
        ours["text_embeds"] = normal(rows, pooled, seed=4)
        ours["time_ids"] = torch.arange(rows * ids).reshape(rows, ids) * 64.5
        theirs["added_cond_kwargs"] = {key: ours[key] for key in ("text_embeds", "time_ids")}
    return both, ours, theirs


def unlike(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@parametrised
@torch.no_grad()
def test_unet(name: str) -> None:
    ours, theirs = unets(name)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for size in SIZES:
        both, own, other = inputs(FAMILIES[name], size)
        assert unlike(ours(**both, **own), theirs(*both.values(), **other).sample) <= CLOSE


@parametrised
@torch.no_grad()
def test_every_condition_matters(name: str) -> None:
    """Else the comparisons could pass on networks that ignore it."""
    ours, _ = unets(name)
    both, own, _ = inputs(FAMILIES[name], (8, 8))
    base = ours(**both, **own)
    for key, value in (both | own).items():
        changed = ours(**(both | own | {key: value.roll(1, -1)}))
        assert (changed - base).abs().max() > 1e-3 * base.abs().max(), key


@parametrised
@torch.no_grad()
def test_unet_with_controlnet_and_adapter(name: str) -> None:
    """Each side makes its ControlNet's residuals; the adapter's are random, one a level and one for the middle."""
    family, (ours, theirs) = FAMILIES[name], unets(name)
    torch.manual_seed(5)
    control = randomise(
        ControlNetModel.from_unet(theirs, conditioning_embedding_out_channels=(4, 8), load_weights_from_unet=False),
        seed=6,
    )
    mine = ControlNet(ControlNetConfig.read(dict(control.config))).eval()
    mine.load_state_dict(control.state_dict())
    for size in SIZES:
        both, own, other = inputs(family, size)
        sized = {key: value for key, value in own.items() if key != "timestep_cond"}
        added = {key: value for key, value in other.items() if key != "timestep_cond"}
        picture = torch.rand(len(TIMES), 3, 2 * size[0], 2 * size[1], generator=torch.Generator().manual_seed(7))
        down, mid = mine(**both, cond=picture, scale=torch.tensor(0.7), **sized)
        expected = control(*both.values(), controlnet_cond=picture, conditioning_scale=0.7, **added)
        controlled = {"down_residuals": down, "mid_residual": mid}
        residuals = {
            "down_block_additional_residuals": expected.down_block_res_samples,
            "mid_block_additional_residual": expected.mid_block_res_sample,
        }
        features = adapter_residuals(ours.config, size)
        plain = ours(**both, **own)
        for more, theirs_more in (
            (controlled, residuals),
            ({"adapter_residuals": features}, {"down_intrablock_additional_residuals": list(features)}),
            (
                controlled | {"adapter_residuals": features[:1]},
                residuals | {"down_intrablock_additional_residuals": list(features[:1])},
            ),
        ):
            found = ours(**both, **own, **more)
            assert unlike(found, theirs(*both.values(), **other, **theirs_more).sample) <= CLOSE
            assert (found - plain).abs().max() > 1e-3 * plain.abs().max()


def adapter_residuals(config: UNetConfig, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """One for each level, of the size within a level with attention and after a plain one, and one for the middle."""
    residuals = []
    for level, (kind, width) in enumerate(zip(config.down_block_types, config.block_out_channels, strict=True)):
        after = tuple((side + 1) // 2 for side in size) if level < len(config.block_out_channels) - 1 else size
        # padding 0 rounds down
        after = tuple(side // 2 for side in size) if config.downsample_padding == 0 and after != size else after
        height, width_ = size if kind == "CrossAttnDownBlock2D" else after
        residuals.append(normal(len(TIMES), width, height, width_, seed=20 + level))
        size = (after[0], after[1])
    return (*residuals, normal(*residuals[-1].shape, seed=30))


@pytest.mark.slow(minutes=0.13)
@torch.no_grad()
def test_one_trace_serves_all_sizes() -> None:
    """The network with all its inputs, as an exporter takes it: no branch depends on a size."""
    ours, _ = unets("lcm")

    def arguments(size: tuple[int, int]) -> dict[str, Any]:
        both, own, _ = inputs(FAMILIES["lcm"], size)
        half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        skips = zip(ours.skip_channels, (size, size, half, half), strict=True)
        down = [normal(len(TIMES), width, *sides, seed=40 + i) for i, (width, sides) in enumerate(skips)]
        more = {"down_residuals": tuple(down), "mid_residual": down[-1] + 1.0}
        return both | own | more | {"adapter_residuals": adapter_residuals(ours.config, size)}

    def free(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(free(one) for one in value)
        return dict.fromkeys((0, 2, 3) if value.ndim == 4 else (0,), torch.export.Dim.AUTO)

    given = arguments((9, 13))
    shapes = {key: free(value) for key, value in given.items()}
    traced = torch.export.export(ours, (), given, dynamic_shapes=shapes).module()
    for size in SIZES:
        given = arguments(size)
        assert unlike(traced(**given), ours(**given)) <= CLOSE


@parametrised
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_unet_in_half_precision(name: str, dtype: torch.dtype) -> None:
    ours, theirs = (copy.deepcopy(network).to(dtype) for network in unets(name))
    if ours.config.upcast_attention:
        theirs.set_attn_processor(AttnProcessor())  # the one that heeds it
    both, own, other = inputs(FAMILIES[name], (7, 9))
    half = {key: value if key == "timestep" else value.to(dtype) for key, value in both.items()}
    found, expected = ours(**half, **own), theirs(*half.values(), **_cast(other, dtype)).sample
    # The same operations in the same precision but for the layout of some, 0 where it was measured; where scores are
    # upcast, theirs round the probabilities to half and ours do not, 2.5 eps. A time rounded to half makes 3 eps.
    assert unlike(found, expected) <= (4 if ours.config.upcast_attention else 1) * torch.finfo(dtype).eps
    whole = unets(name)[0](**both, **own)
    # the roundings of all layers: 3 (float16) and 5 (bfloat16) eps where it was measured
    assert unlike(found.float(), whole) <= 10 * torch.finfo(dtype).eps


def _cast(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Their conditions in their precision; time ids stay float32, in which ours takes them."""
    return {
        key: {k: v if k == "time_ids" else v.to(dtype) for k, v in value.items()}
        if isinstance(value, dict)
        else value.to(dtype)
        for key, value in given.items()
    }


def test_scores_are_in_float32_where_the_config_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(q.dtype)
        return plain(q, k, v)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    for name, dtype in (("sd2-base", torch.float16), ("sd2-v", torch.float32)):
        seen.clear()
        both, _, _ = inputs(FAMILIES[name], (4, 4))
        with torch.no_grad():
            copy.deepcopy(unets(name)[0]).half()(both["sample"].half(), TIMES, both["context"].half())
        assert set(seen) == {dtype}


@parametrised
@torch.no_grad()
def test_autoencoder(name: str) -> None:
    family = FAMILIES[name]
    theirs = networks(family)["vae"]
    ours = Autoencoder(AutoencoderConfig.read(dict(theirs.config))).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    picture = normal(2, 3, 2 * family.factor, 3 * family.factor, seed=8)
    expected = theirs.encode(picture).latent_dist.parameters
    assert unlike(ours.encode(picture), expected) <= CLOSE
    latent = normal(2, ours.config.latent_channels, 2, 3, seed=9)
    assert unlike(ours.decode(latent), theirs.decode(latent).sample) <= CLOSE
    half, other = ours.half(), theirs.half()
    # the same operations in the same precision but for the layout of some: 0.8 eps where it was measured
    assert unlike(half.decode(latent.half()), other.decode(latent.half()).sample) <= 2 * torch.finfo(torch.float16).eps


@parametrised
def test_config_written_back_makes_the_same_network_in_diffusers(name: str) -> None:
    made = networks(FAMILIES[name])
    for theirs, read, ours in (
        (made["unet"], UNetConfig.read, "UNet2DConditionModel"),
        (made["vae"], AutoencoderConfig.read, "AutoencoderKL"),
    ):
        config = read(dict(theirs.config))
        written = to_config(ours, config)
        again = type(theirs).from_config(written)
        assert {key: value.shape for key, value in again.state_dict().items()} == {
            key: value.shape for key, value in theirs.state_dict().items()
        }
        assert {key: again.config[key] for key in theirs.config if not key.startswith("_")} == {
            key: value for key, value in theirs.config.items() if not key.startswith("_")
        }
        assert read(written) == config


@parametrised
def test_what_was_written_in_few_fields_is_read(name: str) -> None:
    """A config that lacks what equals diffusers' default is the same config."""
    whole = UNetConfig.read(dict(unets(name)[1].config))
    assert UNetConfig.read(FAMILIES[name].unet) == whole
    assert AutoencoderConfig.read(FAMILIES[name].vae) == AutoencoderConfig.read(
        dict(AutoencoderKL(**FAMILIES[name].vae).config)
    )


def test_defaults_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        for ours, theirs in (
            (UNetConfig(), UNet2DConditionModel()),
            (AutoencoderConfig(), AutoencoderKL()),
            (ControlNetConfig(), ControlNetModel()),
        ):
            assert type(ours).read(dict(theirs.config)) == ours
            assert type(ours).read({}) == ours
