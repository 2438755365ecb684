"""Networks that `torch.compile` has compiled take the steps of those it has not, under the same names."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmrt.model.checkpoint.load import load
from ldmrt.model.networks.autoencoder import Autoencoder, AutoencoderConfig
from ldmrt.model.training.compiling import check_compiler, compile_networks
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import TrainingTask
from ldmrt.model.training.lora.pairs import LoraConfig, Pairs
from ldmrt.model.training.tasks.finetune import Denoiser
from ldmrt.runtime import LdmrtError

from ..captioned import task_of
from ..first_stage.test_task import ADVERSARIAL, SETTINGS, prepared

PLAIN = Settings(steps=20, batch=2, learning_rate=1e-3, warmup=0, schedule="constant")
ROUNDING = 1e-4  # fused kernels round otherwise, and twenty steps add to that
Begun = tuple[Run, TrainingTask]


def autoencoder(settings: Settings) -> Begun:
    """Begin a run with an opponent, and its task."""
    torch.manual_seed(0)
    return prepared("kl", ADVERSARIAL, 0, settings)


@pytest.mark.slow(minutes=2)
def test_a_compiled_network_and_text_encoder_take_the_same_steps(folders: Callable[[str], Path]) -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        checkpoint = load(folders("sd15"))
        denoiser = Denoiser.of(checkpoint, train_text_encoders=True)
        run = Run(denoiser, replace(PLAIN, compile=compiled))
        losses.append([progress.loss for progress in run.optimise(task_of(checkpoint, denoiser))])
    assert losses[0] != losses[1]  # it has been compiled
    assert losses[1] == pytest.approx(losses[0], rel=ROUNDING)


@pytest.mark.slow(minutes=2)
def test_compiled_networks_take_the_same_steps_and_resume(tmp_path: Path) -> None:
    plain, task = autoencoder(PLAIN)
    expected = [progress.loss for progress in plain.optimise(task)]
    compiled = replace(PLAIN, compile=True)
    whole, task = autoencoder(compiled)
    steps = whole.optimise(task)
    first = [progress.loss for progress in itertools.islice(steps, 12)]
    whole.save(tmp_path / "state")
    losses = first + [progress.loss for progress in steps]
    assert losses != expected  # it has been compiled
    assert losses == pytest.approx(expected, rel=ROUNDING)
    again, task = autoencoder(compiled)
    again.resume(tmp_path / "state")
    assert first + [progress.loss for progress in again.optimise(task)] == losses
    weights, others = whole.weights(), again.weights()
    assert weights.keys() == plain.weights().keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    with pytest.raises(LdmrtError, match="another --compile; expected True; found False"):
        autoencoder(PLAIN)[0].resume(tmp_path / "state")


def test_weights_keep_their_names_and_copies_are_not_compiled() -> None:
    names = {compiled: prepared("kl", ADVERSARIAL, 0, replace(SETTINGS, compile=compiled))[0] for compiled in (0, 1)}
    assert names[0].state()["module"].keys() == names[1].state()["module"].keys()  # type: ignore[attr-defined]
    run = names[1]
    networks = [run.module.encoder, run.module.decoder, run.opponent]
    assert all(network._compiled_call_impl is not None for network in networks)
    assert all(module._compiled_call_impl is None for module in run.averaged().modules())


def test_networks_are_what_computes(folders: Callable[[str], Path]) -> None:
    shape: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 4}
    vae = Autoencoder(AutoencoderConfig(**shape))
    assert compile_networks(vae) == [vae.encoder, vae.decoder]
    denoiser = Denoiser.of(load(folders("sd15")))
    assert compile_networks(denoiser) == [denoiser.unet, denoiser.text_encoder]
    assert compile_networks(denoiser.unet) == [denoiser.unet]
    assert compile_networks(Pairs({"unet": denoiser.unet}, LoraConfig(4, 4.0))) == []


def test_a_missing_compiler_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first product is compiled already, and the message is that of its backend."""

    def fails(function: Any, **_: Any) -> Any:
        def called(*_: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found Set TORCHDYNAMO_VERBOSE=1 for more")

        return called

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(LdmrtError, match=r"(?s)does not work here; found [^;]*compiler found\n.*no --compile"):
        check_compiler("cpu")
