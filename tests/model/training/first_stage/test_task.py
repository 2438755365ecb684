"""An autoencoder with all parts of its loss: runs are resumed to the bit, and parts are off by weight 0."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from ldmrt.model.config import to_config
from ldmrt.model.networks.autoencoder import Autoencoder, AutoencoderConfig
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder, VQConfig
from ldmrt.model.training.data.captioned import Sample
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.first_stage.discriminator import Discriminator
from ldmrt.model.training.first_stage.quantise import Codebook
from ldmrt.model.training.first_stage.report import report
from ldmrt.model.training.latents import to_tensor
from ldmrt.model.training.loop.loss_scale import LossScale
from ldmrt.model.training.loop.processes import ALONE, Processes
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Losses, TrainingTask
from ldmrt.model.training.tasks.autoencoder import (
    Parts,
    autoencoder_task,
    finished,
    freeze_encoder,
    learn_log_variance,
)
from ldmrt.model.training.tasks.initialise import initialise
from ldmrt.runtime import LdmrtError

SHAPE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8), "norm_num_groups": 4,
}  # fmt: skip
SETTINGS = Settings(steps=6, batch=4, learning_rate=3e-3, warmup=2, ema=0.9)
ADVERSARIAL = Parts(adversarial=0.5, start=2, perceptual=0.1, reconstruction="l1", log_variance=None)
CASES = {
    "kl": ("kl", Parts()), "kl summed": ("kl", Parts(summed=True, log_variance=-1.0)),
    "kl adversarial": ("kl", ADVERSARIAL), "vq": ("vq", Parts()), "vq averaged": ("averaged", Parts()),
    "vq adversarial": ("vq", Parts(adversarial=1.0, discriminator_loss="vanilla")),
}  # fmt: skip


class Eight:
    """A stream of eight smooth pictures."""

    def __init__(self, side: int = 8) -> None:
        y, x = np.mgrid[:side, :side] / side
        random = np.random.default_rng(0)
        waves = [np.sin(a * x + b * y + c) for a, b, c in random.uniform(-3, 3, (24, 3))]
        self.images = (np.stack(waves).reshape(8, 3, side, side).transpose(0, 2, 3, 1) * 127 + 128).astype(np.uint8)

    def draw(self, seed: int, index: int) -> Sample:
        return Sample(self.images[(seed + index) % 8], "", (index % 8,))


def prepared(
    kind: str, parts: Parts, seed: int, settings: Settings = SETTINGS, processes: Processes = ALONE
) -> tuple[Run, TrainingTask]:
    torch.manual_seed(seed)
    codebook = None
    network: Autoencoder | VQAutoencoder
    if kind == "kl":
        network = Autoencoder(AutoencoderConfig(latent_channels=3, **SHAPE))
    else:
        network = VQAutoencoder(VQConfig(num_vq_embeddings=9, **SHAPE))
        codebook = Codebook(network.quantize, 0, averaged=kind == "averaged")
    if parts.log_variance is None:
        learn_log_variance(network)
    discriminator = Discriminator(1, 8) if parts.adversarial else None
    run = Run(network, settings, opponent=discriminator, processes=processes)
    return run, autoencoder_task(
        network, Eight(), parts, discriminator=discriminator, codebook=codebook, taken=lambda: run.step,
        across=processes.mean,
    )  # fmt: skip


def tensors(value: object, name: str = "") -> dict[str, object]:
    """Flatten nested dicts and lists of a state."""
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in tensors(one, f"{name}.{key}").items()}
    if isinstance(value, list):
        return {k: v for i, one in enumerate(value) for k, v in tensors(one, f"{name}.{i}").items()}
    return {name: value}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_takes_the_same_steps(case: str, parts: int, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, accumulate=parts)
    whole, task = prepared(*CASES[case], 0, settings)
    losses = [p.loss for p in whole.optimise(task)]
    first, task = prepared(*CASES[case], 0, settings)
    halves = [p.loss for p in itertools.islice(first.optimise(task), 3)]
    first.save(tmp_path / "state")
    second, task = prepared(*CASES[case], 1, settings)
    second.resume(tmp_path / "state")
    halves += [p.loss for p in second.optimise(task)]
    assert halves == losses
    one, other = tensors(whole.state()), tensors(second.state())
    assert one.keys() == other.keys()
    assert any(name.startswith(".opposing.state") for name in one) == bool(CASES[case][1].adversarial)
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


def test_the_discriminator_begins_at_its_step_and_learns_from_its_own_part() -> None:
    run, task = prepared("kl", ADVERSARIAL, 0)
    before = {name: value.clone() for name, value in run.opponent.state_dict().items()}
    for progress in run.optimise(task):
        assert progress.losses.keys() == {"reconstruction", "kl", "perceptual", "adversarial", "discriminator"}
        begun = progress.step > 2
        assert (progress.losses["discriminator"].abs().sum() > 0) == begun
        changed = any(not torch.equal(value, before[name]) for name, value in run.opponent.state_dict().items())
        assert changed == begun


def test_gradients_of_the_opponent_are_those_of_its_part_alone() -> None:
    """One backward pass of all parts equals one for each network."""
    run, task = prepared("kl", Parts(adversarial=0.5), 0)
    run.settings = dataclasses.replace(SETTINGS, clip=1e9)
    next(run.optimise(task))
    found = {name: weight.grad for name, weight in run.opponent.named_parameters()}
    other, task = prepared("kl", Parts(adversarial=0.5), 0)
    losses = task.loss_of([Eight().draw(0, i) for i in range(4)], Draws(0, range(4)))
    gradients = torch.autograd.grad(losses["discriminator"].mean(), other.opponent.parameters())
    for expected, (name, gradient) in zip(gradients, found.items(), strict=True):
        torch.testing.assert_close(gradient, expected, msg=name)


def test_parts_of_the_defaults_are_todays_losses_to_the_bit() -> None:
    plain, task = prepared("kl", Parts(), 0)
    general, other = prepared("kl", Parts(adversarial=0.0, start=1), 0)  # the way through all parts
    for one, two in zip(plain.optimise(task), general.optimise(other), strict=True):
        assert one.losses.keys() == two.losses.keys() == {"reconstruction", "kl"}
        assert all(torch.equal(value, two.losses[name]) for name, value in one.losses.items())
    assert plain.state().keys() == {
        "step",
        "torch",
        "about",
        "changes",
        "module",
        "average",
        "optimizer",
        "memory",
        "loss_scale",
    }


def test_a_gradient_of_the_opponent_that_is_not_finite_stops_the_run() -> None:
    run, task = prepared("kl", Parts(adversarial=0.5), 0)
    run.opponent.last.bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(LdmrtError, match=r"step 0 is not finite; .*opponent\.last\.bias"):
        next(run.optimise(task))


def codes_after_a_skipped_step(*, noted: bool) -> torch.Tensor:
    """The codebook of a run whose second step is not finite; its latents may be noted, or not."""
    run, task = prepared("averaged", Parts(), 0)
    run.loss_scale = LossScale()

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        if run.step != 1:
            return task.loss_of(samples, draws)
        run.module.train(noted)  # in eval mode no latents are noted
        losses = {name: value * float("inf") for name, value in task.loss_of(samples, draws).items()}
        run.module.train()
        return losses

    list(run.optimise(dataclasses.replace(task, loss_of=loss_of)))
    assert run.loss_scale.skipped == 1
    return run.module.quantize.embedding.weight.detach()


def test_a_skipped_step_leaves_nothing_in_the_codebook() -> None:
    assert torch.equal(codes_after_a_skipped_step(noted=True), codes_after_a_skipped_step(noted=False))


@pytest.mark.parametrize("parts", [Parts(), ADVERSARIAL], ids=["plain", "adversarial"])
def test_checkpointing_takes_the_same_steps(parts: Parts) -> None:
    """The adaptive weight takes gradients of its own through the blocks that are computed again."""
    losses = []
    for checkpointing in (False, True):
        run, task = prepared("kl", parts, 0, dataclasses.replace(SETTINGS, checkpointing=checkpointing))
        losses.append([progress.loss for progress in run.optimise(task)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ["kl", "averaged"])
def test_a_finished_autoencoder_loads_in_diffusers(kind: str) -> None:
    run, task = prepared(kind, Parts(log_variance=None), 0)
    list(run.optimise(task))
    ours = finished(run.averaged())
    theirs = (AutoencoderKL if kind == "kl" else VQModel).from_config(
        to_config("AutoencoderKL" if kind == "kl" else "VQModel", ours.config)
    )
    theirs.load_state_dict(ours.state_dict())
    x = to_tensor(list(Eight().images), "cpu")
    with torch.no_grad():
        if kind == "kl":
            expected, latents = theirs.decode(theirs.encode(x).latent_dist.mode()).sample, ours.encode(x).chunk(2, 1)[0]
        else:
            latents, hidden = ours.encode(x), theirs.encode(x).latents
            assert torch.equal(ours.quantize.codes(latents).flatten(), theirs.quantize(hidden)[2][2].flatten())
            expected = theirs.decode(hidden).sample
        # 1e-4: two implementations of attention in float32, values of about 1
        torch.testing.assert_close(ours.decode(latents), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_gradients_of_a_decoder_alone_are_those_beside_the_encoder(kind: str) -> None:
    """Its latents are the same, so the frozen run's gradients are those of a whole one, of the decoder's weights."""
    samples, gradients = [Eight().draw(0, i) for i in range(4)], []
    for frozen in (False, True):
        run, task = prepared(kind, Parts(), 0)
        if frozen:
            freeze_encoder(run.module)
            task = autoencoder_task(run.module, Eight(), Parts())
        losses = task.loss_of(samples, Draws(0, range(4)))
        assert losses.keys() == {"reconstruction"} | (set() if frozen else {"kl" if kind == "kl" else "codebook"})
        losses["reconstruction"].mean().backward()
        gradients.append({name: one.grad for name, one in run.module.named_parameters() if one.grad is not None})
    whole, alone = gradients
    assert alone.keys() == {name for name in whole if name.startswith(("decoder.", "post_quant_conv."))}
    largest = max(gradient.abs().max().item() for gradient in alone.values())
    for name, gradient in alone.items():
        # 1e-5 of the largest: codes that pass gradients on, z + (e - z), are e with another rounding, of about 1e-7
        within = 1e-5 * largest if kind == "vq" else 0.0
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=within, msg=name)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_state_holds_the_decoder_alone(kind: str) -> None:
    vae = prepared(kind, Parts(), 0)[0].module
    freeze_encoder(vae)
    run = Run(vae, SETTINGS)
    next(run.optimise(autoencoder_task(vae, Eight())))
    state = run.state()
    learned = {name for name in vae.state_dict() if name.startswith(("decoder.", "post_quant_conv."))}
    buffers = {name for name, _ in vae.named_buffers()}  # of the codebook, from its own preparation
    assert state["module"].keys() - buffers == state["average"].keys() - buffers == learned
    assert len(state["optimizer"]["state"]) == len(learned)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_eight_pictures_are_learned_by_heart(kind: str) -> None:
    settings = Settings(steps=300, batch=8, learning_rate=4e-3, warmup=20, ema=0.9)
    shape = {**SHAPE, "block_out_channels": (32, 32)}
    torch.manual_seed(0)
    codebook, network = None, None
    if kind == "kl":
        network = Autoencoder(AutoencoderConfig(latent_channels=4, **shape))
        initialise(network)
    else:
        network = VQAutoencoder(VQConfig(num_vq_embeddings=256, latent_channels=4, **shape))
        initialise(network)
        codebook = Codebook(network.quantize, 0)
    run = Run(network, settings)
    list(run.optimise(autoencoder_task(network, Eight(16), codebook=codebook)))
    found = report(run.averaged(), [to_tensor(list(Eight(16).images), "cpu")])
    assert found.psnr >= 30, found
