"""What training aims at, what stops it, and the file it resumes from."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldmrt.model.data import Sample
from ldmrt.model.run import Run, Settings
from ldmrt.model.train import train_ldm
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.schedule import alphas_cumprod
from ldmrt.runtime.scheduler_config import resolve

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SETTINGS = Settings(steps=4, batch=3, learning_rate=1e-2)


class One:
    """One picture, again and again."""

    def draw(self, seed: int, index: int) -> Sample:
        return Sample(np.zeros((4, 4, 3), np.uint8), "a caption", (index,))


class Silent(nn.Module):
    """Predicts zero, and remembers what it was asked: then the loss is the mean square of the target."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, noised: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.asked.append((noised, t))
        return self.weight * noised


class Text(nn.Module):
    def forward(self, ids: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=ids)


class Constant(nn.Module):
    """An autoencoder whose latents are certain: a mean of 2 and no variance."""

    config = SimpleNamespace(scaling_factor=0.25)

    def encode(self, picture: Tensor) -> Tensor:
        return torch.tensor([2.0, 2.0, -99.0, -99.0])[None, :, None, None].expand(len(picture), 4, 8, 8)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", pytest.param("sample")])
def test_target_is_what_the_scheduler_predicts(kind: str) -> None:
    unet, x0 = Silent(), 0.5
    run = Run(nn.ModuleDict({"unet": unet, "text_encoder": Text()}), SETTINGS)
    tokenize: Callable[[list[str]], np.ndarray] = lambda texts: np.zeros((len(texts), 4), np.int64)  # noqa: E731
    progress = next(iter(train_ldm(run, One(), Constant(), tokenize, SCHEDULER | {"prediction_type": kind})))  # type: ignore[arg-type]
    noised, t = unet.asked[0]
    abar = torch.from_numpy(alphas_cumprod(resolve(SCHEDULER, "DDPMScheduler")))[t][:, None, None, None]
    eps = (noised.double() - abar.sqrt() * x0) / (1 - abar).sqrt()
    assert abs(float(eps.std()) - 1) < 0.2  # 384 numbers: five standard deviations are 0.18
    targets = {
        "epsilon": eps,
        "v_prediction": abar.sqrt() * eps - (1 - abar).sqrt() * x0,  # Salimans & Ho 2022, section 4
        "sample": torch.full_like(eps, x0),
    }
    # 1e-5: float32 of the loop against float64 here
    assert progress.loss == pytest.approx(float(targets[kind].square().mean()), rel=1e-5)


def test_a_tenth_of_the_captions_is_dropped() -> None:
    texts: list[str] = []

    def tokenize(batch: list[str]) -> np.ndarray:
        texts.extend(batch)
        return np.zeros((len(batch), 4), np.int64)

    run = Run(nn.ModuleDict({"unet": Silent(), "text_encoder": Text()}), Settings(1, 1000, 1e-3))
    list(train_ldm(run, One(), Constant(), tokenize, SCHEDULER | {"prediction_type": "epsilon"}))  # type: ignore[arg-type]
    assert set(texts) == {"", "a caption"}
    assert 70 <= texts.count("") <= 130  # of 1000; the standard deviation is 9.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_the_run(value: float) -> None:
    run = Run(nn.Linear(2, 2), SETTINGS)
    before = copy.deepcopy(run.module.state_dict())
    loop = run.optimise(lambda random: run.module(torch.ones(2)).sum() * (1.0 if run.step == 0 else value))
    next(loop)
    assert not torch.equal(run.module.weight, before["weight"])
    before = copy.deepcopy(run.module.state_dict())
    with pytest.raises(LdmrtError, match="step 1 is not finite"):
        next(loop)
    assert all(torch.equal(v, before[k]) for k, v in run.module.state_dict().items())


def test_gradient_that_is_not_finite_stops_the_run() -> None:
    run = Run(nn.Linear(2, 2), SETTINGS)
    with pytest.raises(LdmrtError, match="not finite"):
        next(run.optimise(lambda random: (run.module(torch.ones(2)) * 0).abs().sum().sqrt()))


def saved(folder: Path) -> Path:
    run = Run(nn.Linear(2, 2), SETTINGS)
    next(run.optimise(lambda random: run.module(torch.ones(2)).square().sum()))
    run.save(folder / "state")
    return folder / "state"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(key: str) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        state.pop(key)
        torch.save(state, path)

    return damage


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        cut,
        pytest.param(
            lambda path: path.write_bytes(b""),
        ),
        lambda path: path.write_bytes(b"no state"),
        *(without(key) for key in ("step", "module", "average", "optimizer")),
        lambda path: torch.save({"module": nn.Linear(3, 3).state_dict()}, path),
        lambda path: torch.save({"step": Evil()}, path),
    ],
)
def test_damaged_state_is_one_error(
    damage: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path)
    run = Run(nn.Linear(2, 2), SETTINGS)
    run.resume(path)
    assert run.step == 1
    damage(path)
    with pytest.raises(LdmrtError, match="state") as caught:
        Run(nn.Linear(2, 2), SETTINGS).resume(path)
    assert "--resume" in str(caught.value.hint)
    assert not (tmp_path / "evil").exists()


def test_a_save_that_fails_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def full_disk(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        Run(nn.Linear(2, 2), SETTINGS).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
