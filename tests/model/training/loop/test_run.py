"""Training on three pictures with networks of a few thousand weights."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ldmrt.model import Autoencoder, AutoencoderConfig, UNet, UNetConfig
from ldmrt.model.checkpoint.checkpoint import text_encoder
from ldmrt.model.networks.plain_unet import PlainUNet, PlainUNetConfig
from ldmrt.model.training.data.captioned import Sample
from ldmrt.model.training.diffusion.bound import Chain
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Progress
from ldmrt.model.training.tasks.autoencoder import autoencoder_task
from ldmrt.model.training.tasks.latent_diffusion import Denoiser, ldm_task
from ldmrt.model.training.tasks.unconditional import unconditional_task
from ldmrt.model.training.tasks.upscaler import Degradation, upscaler_task

from ..tiny_runs import Constant, One, Silent, Text, objective

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
SETTINGS = Settings(steps=6, batch=2, learning_rate=3e-3, warmup=2, ema=0.9)


class Three:
    """A stream of three captioned pictures."""

    def draw(self, seed: int, index: int) -> Sample:
        which = (seed + index * index) % 3
        return Sample(PICTURES[which], f"picture {which}", (which,))


def tokenize(texts: list[str]) -> np.ndarray:
    return np.array([[0, 1 + len(text) % 3, len(text) % 4, 9] for text in texts])


def autoencoder(seed: int) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(
        AutoencoderConfig(3, 3, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (8, 8), 1, norm_num_groups=4)
    )


def denoiser(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    config = UNetConfig(
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), block_out_channels=(16,),
        layers_per_block=1, norm_num_groups=8, cross_attention_dim=8, attention_head_dim=2,
    )  # fmt: skip
    text = {
        "vocab_size": 10, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 4, "eos_token_id": 9, "bos_token_id": 0, "pad_token_id": 9,
    }  # fmt: skip
    return Denoiser(UNet(config), text_encoder(text))


def train_vae(run: Run) -> Iterator[Progress]:
    return run.optimise(autoencoder_task(run.module, Three()))


def train_denoiser(run: Run) -> Iterator[Progress]:
    return run.optimise(ldm_task(run.module, Three(), autoencoder(5).eval(), tokenize, objective(SCHEDULER)))


def upscaler(seed: int) -> PlainUNet:
    torch.manual_seed(seed)
    config = PlainUNetConfig(
        in_channels=6, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), block_out_channels=(16,),
        layers_per_block=1, norm_num_groups=8, add_attention=False, num_class_embeds=4,
    )  # fmt: skip
    return PlainUNet(config)


def train_enlarging(run: Run) -> Iterator[Progress]:
    degradation = Degradation(crop=6, levels=4, vae=autoencoder(5).eval())
    return run.optimise(upscaler_task(run.module, Three(), degradation, objective(SCHEDULER), SCHEDULER))


def plain(seed: int) -> PlainUNet:
    return PlainUNet(dataclasses.replace(upscaler(seed).config, in_channels=3, out_channels=6, num_class_embeds=None))


def train_plain(run: Run) -> Iterator[Progress]:
    return run.optimise(unconditional_task(run.module, Three(), objective(SCHEDULER), Chain.of(SCHEDULER)))


def train_flow(run: Run) -> Iterator[Progress]:
    flow = Objective.of({"prediction_type": "flow_prediction"}, "cpu", timesteps="logit_normal", loss="huber")
    return run.optimise(ldm_task(run.module, Three(), autoencoder(5).eval(), tokenize, flow))


def train_by_importance(run: Run) -> Iterator[Progress]:
    """With so few timesteps that all of them have been seen often enough after five samples."""
    scheduler = {**SCHEDULER, "num_train_timesteps": 2}
    drawn = Objective.of(scheduler, "cpu", timesteps="importance", pyramid_noise=0.5)
    assert drawn.memory is not None
    drawn.memory.losses = drawn.memory.losses[:, :1]
    drawn.memory.REMEMBERED = 1  # type: ignore[misc]
    return run.optimise(unconditional_task(run.module, Three(), drawn, Chain.of(scheduler)))


TASKS = [(autoencoder, train_vae), (denoiser, train_denoiser), (upscaler, train_enlarging), (plain, train_plain)]
EACH = pytest.mark.parametrize(("build", "train"), [*TASKS, (denoiser, train_flow), (plain, train_by_importance)])


@pytest.mark.parametrize(("build", "train"), TASKS)
def test_loss_falls(build: Callable[[int], nn.Module], train: Callable[[Run], Iterator[Progress]]) -> None:
    run = Run(build(0), Settings(steps=30, batch=4, learning_rate=1e-2, warmup=5))
    progress = list(train(run))
    assert [p.step for p in progress] == list(range(1, 31))
    assert all(p.steps == 30 and p.rate > 0 for p in progress)
    losses = [p.loss for p in progress]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])  # each reaches 0.5 and less, whatever the seed


@EACH
def test_a_resumed_run_takes_the_same_steps(
    build: Callable[[int], nn.Module], train: Callable[[Run], Iterator[Progress]], tmp_path: Path
) -> None:
    whole = Run(build(0), SETTINGS)
    losses = [p.loss for p in train(whole)]
    first = Run(build(0), SETTINGS)
    halves = [p.loss for p in itertools.islice(train(first), 3)]
    first.save(tmp_path / "state")
    second = Run(build(1), SETTINGS)  # other weights, which `resume` replaces
    second.resume(tmp_path / "state")
    halves += [p.loss for p in train(second)]
    assert halves == losses
    assert second.step == 6
    for one, other in ((whole.module.state_dict(), second.module.state_dict()), (whole.average, second.average)):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert any(not torch.equal(v, whole.average[k]) for k, v in build(0).state_dict().items())


@EACH
@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_takes_the_same_steps(
    build: Callable[[int], nn.Module], train: Callable[[Run], Iterator[Progress]], parts: int
) -> None:
    settings = Settings(steps=5, batch=8, learning_rate=1e-2, warmup=2)
    whole, divided = Run(build(0), settings), Run(build(0), dataclasses.replace(settings, accumulate=parts))
    for run in (whole, divided):  # AdamW would take the sign of gradients that are zero but for rounding
        run.optimizer = torch.optim.SGD(run.module.parameters(), lr=1.0)  # type: ignore[assignment]
    for first, second in zip(train(whole), train(divided), strict=True):
        assert first.noted.keys() == second.noted.keys()
        assert all(torch.equal(value, second.noted[name]) for name, value in first.noted.items())
        for name, value in first.losses.items():
            assert value.shape == (8,)
            if first.step == 1:  # 1e-6: float32 kernels may sum in another order for another number of samples
                torch.testing.assert_close(value, second.losses[name], rtol=1e-6, atol=0.0)
    weights = divided.module.state_dict()
    for key, value in whole.module.state_dict().items():  # 1e-6: so may the sums of gradients
        torch.testing.assert_close(value, weights[key], rtol=1e-6, atol=1e-6 * float(value.abs().max()) + 1e-9)


def test_a_batch_in_parts_has_the_same_bits_where_kernels_have() -> None:
    """The network is one product for each number, so what is left are the random numbers and the loss."""
    settings, losses = Settings(steps=1, batch=8, learning_rate=1e-3), []
    for parts in (1, 2, 3, 8):
        run = Run(
            nn.ModuleDict({"unet": Silent(), "text_encoder": Text()}), dataclasses.replace(settings, accumulate=parts)
        )
        task = ldm_task(run.module, One(), Constant(), tokenize, objective(SCHEDULER))  # type: ignore[arg-type]
        losses.append(next(run.optimise(task)).losses["denoising"])
    assert all(torch.equal(one, losses[0]) for one in losses)


def test_average_equals_a_slow_twin() -> None:
    run = Run(autoencoder(0), SETTINGS)
    expected = {key: value.double().clone() for key, value in run.module.state_dict().items()}
    for taken, _ in enumerate(train_vae(run), 1):
        decay = min(0.9, (1 + taken) / (10 + taken))
        for key, value in run.module.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value.double()
    averaged = run.averaged()
    assert not averaged.training
    for key, value in averaged.state_dict().items():
        # one rounding to float32 a step, of six
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-6, atol=1e-7)
    assert not torch.equal(averaged.state_dict()["quant_conv.weight"], run.module.state_dict()["quant_conv.weight"])


@EACH
def test_every_picture_of_the_stream_is_drawn_once(
    build: Callable[[int], nn.Module], train: Callable[[Run], Iterator[Progress]], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], Three.draw

    def recorded(self: Three, seed: int, index: int) -> Sample:
        drawn.append((seed, index))
        return draw(self, seed, index)

    monkeypatch.setattr(Three, "draw", recorded)
    list(train(Run(build(0), dataclasses.replace(SETTINGS, seed=4))))
    assert drawn == [(4, i) for i in range(SETTINGS.steps * SETTINGS.batch)]
