"""What training aims at, what stops it, and the file it resumes from."""

import copy
import errno
import math
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.states.files import TENSORS, VALUES, read_state, write_state
from ldmrt.model.training.tasks.latent_diffusion import ldm_task
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.samplers.config import resolve
from ldmrt.runtime.samplers.schedule import alphas_cumprod

from ..tiny_runs import SCHEDULER, SETTINGS, Constant, One, Silent, Text, contents, minimising, objective, saved


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", pytest.param("sample")])
def test_target_is_what_the_scheduler_predicts(kind: str) -> None:
    unet, x0 = Silent(), 0.5
    run = Run(nn.ModuleDict({"unet": unet, "text_encoder": Text()}), SETTINGS)
    tokenize: Callable[[list[str]], np.ndarray] = lambda texts: np.zeros((len(texts), 4), np.int64)  # noqa: E731
    task = ldm_task(run.module, One(), Constant(), tokenize, objective(SCHEDULER | {"prediction_type": kind}))  # type: ignore[arg-type]
    progress = next(run.optimise(task))
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
    list(run.optimise(ldm_task(run.module, One(), Constant(), tokenize, objective(SCHEDULER))))  # type: ignore[arg-type]
    assert set(texts) == {"", "a caption"}
    assert 70 <= texts.count("") <= 130  # of 1000; the standard deviation is 9.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_the_run(value: float) -> None:
    run = Run(nn.Linear(2, 2), SETTINGS)
    before = copy.deepcopy(run.module.state_dict())
    loop = minimising(lambda: run.module(torch.ones(2)).sum() * (1.0 if run.step == 0 else value), run)
    next(loop)
    assert not torch.equal(run.module.weight, before["weight"])
    before = copy.deepcopy(run.module.state_dict())
    with pytest.raises(
        LdmrtError, match=f"step 1 is not finite; found loss .*{value}.* first in the gradient of weight"
    ):
        next(loop)
    assert all(torch.equal(v, before[k]) for k, v in run.module.state_dict().items())
    assert not run.torn


def test_gradient_that_is_not_finite_stops_the_run() -> None:
    run = Run(nn.Linear(2, 2), SETTINGS)
    with pytest.raises(LdmrtError, match=r"loss 0\.0, gradient norm nan; first in the gradient of weight"):
        next(minimising(lambda: (run.module(torch.ones(2)) * 0).abs().sum().sqrt(), run))


def test_a_step_that_is_not_finite_is_told_by_its_samples_and_times() -> None:
    class Broken(Silent):
        def forward(self, noised: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return super().forward(noised, t, context) + self.later * math.nan if len(self.asked) else noised

        def __init__(self) -> None:
            super().__init__()
            self.later = nn.Parameter(torch.zeros(()))

    unet = Broken()
    run = Run(nn.ModuleDict({"text_encoder": Text(), "unet": unet}), SETTINGS)
    tokenize: Callable[[list[str]], np.ndarray] = lambda texts: np.zeros((len(texts), 4), np.int64)  # noqa: E731
    loop = run.optimise(ldm_task(run.module, One(), Constant(), tokenize, objective(SCHEDULER)))  # type: ignore[arg-type]
    unet.asked.append((torch.zeros(()), torch.zeros(())))
    with pytest.raises(LdmrtError) as caught:
        next(loop)
    times = ", ".join(str(int(t)) for t in unet.asked[1][1])
    found = str(caught.value)
    assert f"samples 0, 1, 2; timesteps {times}" in found
    assert "first in the gradient of unet." in found
    assert "--learning-rate" in found
    assert "--resume" not in found  # which is for whoever saved a state to say


def test_the_gradient_is_clipped_as_by_clip_grad_norm() -> None:
    torch.manual_seed(0)
    run, twin = (Run(nn.Linear(4, 4), SETTINGS) for _ in range(2))
    twin.module.load_state_dict(run.module.state_dict())
    x = torch.randn(4) * 100
    next(minimising(lambda: run.module(x).square().sum(), run))
    for group in twin.optimizer.param_groups:
        group["lr"] = SETTINGS.rate(0)
    twin.module(x).square().sum().backward()
    nn.utils.clip_grad_norm_(twin.module.parameters(), SETTINGS.clip)
    twin.optimizer.step()
    assert all(torch.equal(value, twin.module.state_dict()[key]) for key, value in run.module.state_dict().items())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_says_what_takes_less(error: Exception) -> None:
    def loss_of() -> Tensor:
        raise error

    for batch, parts, precision, hint in (
        (8, 1, "fp32", "--accumulate 2, --checkpointing or --precision bf16"),
        (8, 2, "bf16", "--accumulate 4 or --checkpointing"),
        (3, 2, "fp16", "a smaller --size or --checkpointing"),
        (1, 1, "bf16", "a smaller --size or --checkpointing"),
    ):
        run = Run(nn.Linear(2, 2), Settings(4, batch, 1e-2, precision=precision, accumulate=parts))
        with pytest.raises(
            LdmrtError, match=f"out of memory on cpu with {-(-batch // parts)} samples at once"
        ) as caught:
            next(minimising(loss_of, run))
        assert caught.value.hint == hint


def test_another_error_of_torch_is_none_of_memory() -> None:
    with pytest.raises(RuntimeError, match="must match"):
        next(minimising(lambda: torch.ones(2) + torch.ones(3), Run(nn.Linear(2, 2), SETTINGS)))


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(LdmrtError, match="expected fp32, bf16, fp16; found fp8"):
        Settings(4, 1, 1e-2, precision="fp8")


@pytest.mark.parametrize("parts", [0, 3])
def test_a_batch_has_no_more_parts_than_samples(parts: int) -> None:
    with pytest.raises(LdmrtError, match=f"expected 1 to 2, the samples of a batch; found {parts}"):
        Settings(4, 2, 1e-2, accumulate=parts)


def test_a_schedule_that_ends_in_pure_noise_cannot_be_trained_on_epsilon() -> None:
    def first(prediction: str) -> Any:
        run = Run(nn.ModuleDict({"unet": Silent(), "text_encoder": Text()}), SETTINGS)
        scheduler = SCHEDULER | {"prediction_type": prediction, "rescale_betas_zero_snr": True}
        tokenize: Callable[[list[str]], np.ndarray] = lambda texts: np.zeros((len(texts), 4), np.int64)  # noqa: E731
        return run.optimise(ldm_task(run.module, One(), Constant(), tokenize, objective(scheduler)))  # type: ignore[arg-type]

    with pytest.raises(LdmrtError, match=r"rescale_betas_zero_snr .* prediction_type epsilon; expected v_prediction"):
        first("epsilon")
    assert next(iter(first("v_prediction"))).loss > 0


def without(key: str) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        state = read_state(path)
        state.pop(key)
        write_state(path, state)

    return damage


def cut(name: str) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) // 2])

    return damage


def replaced(name: str) -> Callable[[Path], Any]:
    return lambda path: (path / name).write_bytes(b"no state")


def missing(name: str) -> Callable[[Path], Any]:
    return lambda path: (path / name).unlink()


def pickled(state: dict[str, Any]) -> Callable[[Path], Any]:
    """The state of an older version."""

    def damage(path: Path) -> None:
        shutil.rmtree(path)
        torch.save(state, path)

    return damage


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        *(change(name) for change in (missing, cut, replaced) for name in (VALUES, TENSORS)),
        *(without(key) for key in ("step", "module", "average", "optimizer")),
        pickled({"module": nn.Linear(3, 3).state_dict()}),
        pickled({"step": Evil()}),
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


def test_state_with_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for part in ("module", "average"):
        state = read_state(path)
        state[part]["bias"][1] = math.nan
        write_state(tmp_path / "damaged", state)
        with pytest.raises(LdmrtError, match=r"bias in .* is not finite"):
            Run(nn.Linear(2, 2), SETTINGS).resume(tmp_path / "damaged")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_saved(value: float, tmp_path: Path) -> None:
    """The states before them are those to go on from."""
    path = saved(tmp_path)
    before = contents(path)
    run = Run(nn.Linear(2, 2), SETTINGS)
    with torch.no_grad():
        run.module.bias[1] = value
    with pytest.raises(LdmrtError, match=r"bias in step 0 is not finite\n  try: a lower --learning-rate"):
        run.save(path)
    assert contents(path) == before


@pytest.mark.parametrize("name", [TENSORS, VALUES])
def test_a_save_that_fails_leaves_the_old_state(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = contents(path)

    def full_disk(path: Path) -> str:
        if path.name == name:
            raise OSError("no space left on device")
        return ""

    monkeypatch.setattr("ldmrt.model.training.loop.states.files.sha256", full_disk)
    with pytest.raises(OSError, match="no space"):
        Run(nn.Linear(2, 2), SETTINGS).save(path)
    assert contents(path) == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before, limits = contents(path), resource.getrlimit(resource.RLIMIT_FSIZE)
    run = Run(nn.Linear(300, 300), SETTINGS)
    assert run.bytes() == 2 * 4 * (300 * 300 + 300)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            run.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert contents(path) == before
    assert list(tmp_path.iterdir()) == [path]
