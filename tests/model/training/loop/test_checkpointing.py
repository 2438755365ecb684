"""Activations that are computed again give the same losses, gradients and weights, bit by bit."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ldmrt.model import Autoencoder, AutoencoderConfig, UNet, UNetConfig
from ldmrt.model.networks.ldm_bert import LDMBert, LDMBertConfig
from ldmrt.model.networks.plain_unet import PlainUNet, PlainUNetConfig
from ldmrt.model.training.loop.checkpointing import Recomputed, checkpoint_blocks
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings

from ..tiny_runs import minimising

Loss = Callable[[nn.Module], Tensor]
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
T, IDS = torch.tensor([3, 700]), torch.tensor([[0, 3, 9, 9], [0, 4, 5, 9]])


def unet() -> tuple[nn.Module, Loss, int]:
    config = UNetConfig(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=6, attention_head_dim=2,
    )  # fmt: skip
    context = torch.linspace(-1, 1, 60).reshape(2, 5, 6)
    return UNet(config), lambda network: network(X, T, context).square().mean(), 8 + 4  # resnets and transformers


def plain_unet() -> tuple[nn.Module, Loss, int]:
    config = PlainUNetConfig(
        in_channels=4, down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",),
        block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
    )  # fmt: skip
    return PlainUNet(config), lambda network: network(X, T).square().mean(), 5 + 4


def autoencoder() -> tuple[nn.Module, Loss, int]:
    kinds = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    network = Autoencoder(AutoencoderConfig(3, 3, *kinds, (8, 8), 1, norm_num_groups=4))
    return network, lambda network: network.decode(network.encode(X[:, :3]).chunk(2, 1)[0]).square().mean(), 10 + 2


def clip(kind: str) -> tuple[nn.Module, Loss, int]:
    config = transformers.CLIPTextConfig(
        vocab_size=10, hidden_size=8, intermediate_size=8, projection_dim=6, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=4, bos_token_id=0, eos_token_id=9, pad_token_id=9,
    )  # fmt: skip

    def loss(network: nn.Module) -> Tensor:
        out = network(IDS, output_hidden_states=True)
        first = out.text_embeds if kind == "CLIPTextModelWithProjection" else out.last_hidden_state
        return first.square().mean() + out.hidden_states[-2].square().mean()

    return getattr(transformers, kind)(config), loss, 3


def ldm_bert() -> tuple[nn.Module, Loss, int]:
    config = LDMBertConfig(
        vocab_size=10, max_position_embeddings=4, d_model=8, encoder_layers=2, encoder_ffn_dim=8,
        encoder_attention_heads=2, head_dim=4,
    )  # fmt: skip
    return LDMBert(config), lambda network: network.model(IDS).square().mean(), 2


BUILT: dict[str, Callable[[], tuple[nn.Module, Loss, int]]] = {
    "unet": unet, "plain unet": plain_unet, "autoencoder": autoencoder, "ldm bert": ldm_bert,
    "clip": lambda: clip("CLIPTextModel"), "clip, projected": lambda: clip("CLIPTextModelWithProjection"),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_have_the_same_bits(name: str, bf16: bool) -> None:
    torch.manual_seed(0)
    network, loss, blocks = BUILT[name]()
    network.train()
    again = copy.deepcopy(network)
    assert checkpoint_blocks(again) == checkpoint_blocks(again) == blocks
    kept = list[list[int]]()
    values = []
    for one in (network, again):
        sizes = list[int]()
        keep: Any = lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor  # noqa: E731
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            values.append(loss(one))
        kept.append(sizes)
        values[-1].backward()
    assert torch.equal(*values)
    for (key, parameter), other in zip(network.named_parameters(), again.parameters(), strict=True):
        assert (parameter.grad is None) is (other.grad is None), key
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad), key
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in again.parameters())
    # what the blocks keep is hidden from these hooks, which see the rest: so less than a half is left
    assert sum(kept[1]) < 0.5 * sum(kept[0])


def test_a_run_takes_the_same_steps() -> None:
    """Its averaged copy has blocks of its own, which are not those in training."""
    states, settings = [], Settings(steps=3, batch=2, learning_rate=1e-2, warmup=0)
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network, loss, _ = unet()
        run = Run(network, replace(settings, checkpointing=checkpointing))
        list(minimising(lambda run=run, loss=loss: loss(run.module), run))  # type: ignore[misc]
        states.append(run.module.state_dict() | {f"average {name}": value for name, value in run.average.items()})
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    copied = run.averaged()
    assert sum(isinstance(vars(block).get("forward"), Recomputed) for block in copied.modules()) == 12
    before = loss(copied)
    with torch.no_grad():
        assert torch.equal(loss(copied), before)
        for parameter in run.module.parameters():
            parameter.zero_()
        assert torch.equal(loss(copied), before)
