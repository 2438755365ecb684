"""Networks that are told a class, against diffusers' with the same weights."""

from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from torch import Tensor

from ldmrt.model import ControlNet, ControlNetConfig, UNetConfig
from ldmrt.model.config import to_config
from ldmrt.runtime import LdmrtError

from ...support.pipelines import randomise
from .unets import CLOSE, THREE, TWO, difference, pair

TABLE = {"num_class_embeds": 10}
NUMBER = {"class_embed_type": "timestep"}
WHOLE, BETWEEN = torch.tensor([9, 0, 3]), torch.tensor([0.0, 20.5, 999.0])
# As in the config of Stable Diffusion's x4 upscaler, whose class is the noise level of the small image.
UPSCALER: dict[str, Any] = THREE | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "only_cross_attention": (True, True, False),
    "in_channels": 7,
    "num_class_embeds": 1000,
    "use_linear_projection": True,
}
CASES: dict[str, tuple[dict[str, Any], Tensor]] = {
    "a table": (TABLE, WHOLE),
    "a table, read by 32 bits": (TABLE, WHOLE.int()),
    "a number": (NUMBER, BETWEEN),
    "a whole number": (NUMBER, WHOLE),
    "a number, and a table that is not there": (NUMBER | TABLE, BETWEEN),
    "a number, sine first and shifted": (NUMBER | {"flip_sin_to_cos": False, "freq_shift": 1}, BETWEEN),
    "a number, of another activation": (NUMBER | {"act_fn": "mish"}, BETWEEN),
    "the x4 upscaler": (UPSCALER, torch.tensor([0, 20, 999])),
    "before the activation of the time": (TABLE | {"time_embedding_act_fn": "mish"}, WHOLE),
}
TIMES = torch.tensor([0, 1, 999])
CONTROL: dict[str, Any] = {key: value for key, value in TWO.items() if key != "up_block_types"}
CONTROL |= {"conditioning_embedding_out_channels": (4, 6)}


@pytest.mark.parametrize("name", CASES)
def test_unet_equals_diffusers(name: str) -> None:
    change, labels = CASES[name]
    ours, theirs = pair(TWO | change)
    assert any(key.startswith("class_embedding.") for key in ours.state_dict())
    assert difference(ours, theirs, (8, 12), TIMES, class_labels=labels) <= CLOSE
    assert difference(ours, theirs, (7, 9), TIMES[:1], class_labels=labels[1:2]) <= CLOSE
    assert UNetConfig.read(to_config("UNet2DConditionModel", ours.config)) == ours.config


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_every_label_matters(name: str) -> None:
    """Else the comparison above could pass on networks that ignore it."""
    change, labels = CASES[name]
    ours, _ = pair(TWO | change)
    sample, context = (torch.randn(3, *shape).double() for shape in ((ours.config.in_channels, 4, 4), (5, 24)))
    base = ours(sample, TIMES, context, class_labels=labels)
    changed = ours(sample, TIMES, context, class_labels=labels.roll(1))
    assert ((changed - base).flatten(1).abs().amax(1) > 1e-3 * base.abs().max()).all()


@pytest.mark.parametrize(
    "change", [TABLE, NUMBER, NUMBER | {"act_fn": "mish"}], ids=["table", "number", "other activation"]
)
@torch.no_grad()
def test_controlnet_equals_diffusers(change: dict[str, Any]) -> None:
    torch.manual_seed(1)
    theirs = randomise(ControlNetModel(**CONTROL, **change))  # in float32: it does not convert a number's features
    ours = ControlNet(ControlNetConfig.read(dict(theirs.config))).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    labels = WHOLE if change == TABLE else BETWEEN
    for size in ((8, 12), (7, 9)):
        given = [torch.randn(3, 4, *size), TIMES, torch.randn(3, 5, 24), torch.rand(3, 3, *(2 * side for side in size))]
        down, middle = ours(*given, torch.tensor(0.75), class_labels=labels)
        wanted = theirs(*given, 0.75, class_labels=labels)
        expected = [*wanted.down_block_res_samples, wanted.mid_block_res_sample]
        for found, other in zip([*down, middle], expected, strict=True):
            # the order of sums in float32, by 7e-7 in networks of this size; another activation makes 1e-2
            assert (found - other).abs().max() <= 1e-5 * other.abs().max()
    assert ControlNetConfig.read(to_config("ControlNetModel", ours.config)) == ours.config


@pytest.mark.parametrize(
    ("change", "labels", "message"),
    [
        ({}, WHOLE, "unexpected class_labels"),
        (TABLE, None, "class_labels is missing.*num_class_embeds needs it"),
        (NUMBER, None, "class_labels is missing.*class_embed_type timestep needs it"),
        (TABLE, BETWEEN, "class_labels holds no whole numbers.*int64.*float32"),
    ],
)
def test_labels_that_do_not_fit_are_named(change: dict[str, Any], labels: Tensor | None, message: str) -> None:
    ours, _ = pair(TWO | change)
    control = ControlNet(ControlNetConfig.read(CONTROL | change)).double()
    given = [torch.ones(3, *shape).double() for shape in ((4, 4, 4), (5, 24))]
    with pytest.raises(LdmrtError, match=f"(?s)unet: {message}"):
        ours(given[0], TIMES, given[1], class_labels=labels)
    picture = torch.ones(3, 3, 8, 8).double()
    with pytest.raises(LdmrtError, match=f"(?s)controlnet: {message}"):
        control(given[0], TIMES, given[1], picture, torch.ones(()), class_labels=labels)
