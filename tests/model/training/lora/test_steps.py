"""Training pairs on captioned images: what learns, what stays, and what a resumed run does."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldmrt.model.checkpoint.load import load
from ldmrt.model.training.loop.averaged import with_average
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Progress
from ldmrt.model.training.lora.pairs import LoraConfig, Pairs
from ldmrt.model.training.tasks.finetune import Denoiser, encoders_of

from ..captioned import task_of
from ..resumed import assert_resumes

SETTINGS = Settings(steps=6, batch=2, learning_rate=1e-3, warmup=0, seed=3)
CONFIG = LoraConfig(rank=2, alpha=2.0, layers=("attention", "feed-forward"))


def networks_of(denoiser: Denoiser, *, text: bool) -> dict[str, torch.nn.Module]:
    return {"unet": denoiser.unet, **(encoders_of(denoiser) if text else {})}


@pytest.mark.slow(minutes=0.13)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("family", "text"), [("sd15", True), ("sdxl", False)])
def test_a_resumed_run_takes_the_same_steps(
    family: str, text: bool, accumulate: int, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    def begin() -> tuple[Run[Pairs], Iterator[Progress]]:
        checkpoint = load(folders(family))
        denoiser = Denoiser.of(checkpoint)
        torch.manual_seed(0)
        pairs = Pairs(networks_of(denoiser, text=text), CONFIG)
        run = Run(pairs, replace(SETTINGS, accumulate=accumulate))
        return run, run.optimise(task_of(checkpoint, denoiser))

    assert_resumes(begin, tmp_path / "state")


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_pairs_learn_and_nothing_else(family: str, folders: Callable[[str], Path]) -> None:
    checkpoint = load(folders(family))
    denoiser = Denoiser.of(checkpoint)
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    base = next(Run(denoiser, replace(SETTINGS, learning_rate=1e-30)).optimise(task_of(checkpoint, denoiser))).loss
    denoiser.load_state_dict(before)
    denoiser.zero_grad()
    networks = networks_of(denoiser, text=True)
    run = Run(pairs := Pairs(networks, CONFIG), SETTINGS)
    losses = [progress.loss for progress in run.optimise(task_of(checkpoint, denoiser))]
    assert losses[0] == base  # new pairs add zero
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert all(weight.grad is None for weight in denoiser.parameters())
    assert run.state()["module"].keys() == pairs.state_dict().keys()  # type: ignore[attr-defined]
    # the last of SDXL's layers of the first encoder, and those behind, reach no hidden state that is read
    still = {place for place, (_, up) in pairs.factors().items() if not up.any()}
    last = checkpoint.text_encoders["text_encoder"].config.num_hidden_layers - 1  # type: ignore[attr-defined]
    unread = {
        place
        for place in pairs.factors()
        if family == "sdxl" and place[0] == "text_encoder" and f"layers.{last}." in place[1]
    }
    assert still == unread


def test_detached_networks_are_the_base(folders: Callable[[str], Path]) -> None:
    denoiser = Denoiser.of(load(folders("sd15")))
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 3, denoiser.unet.config.cross_attention_dim)
    networks = networks_of(denoiser, text=False)
    base = denoiser.unet(*inputs)
    pairs = Pairs(networks, CONFIG)
    for weight in pairs.parameters():
        torch.nn.init.normal_(weight)
    changed = denoiser.unet(*inputs)
    assert not torch.equal(changed, base)
    with pairs.detached(networks):
        assert torch.equal(denoiser.unet(*inputs), base)
    assert torch.equal(denoiser.unet(*inputs), changed)


def test_the_average_takes_the_place_of_the_pairs(folders: Callable[[str], Path]) -> None:
    checkpoint = load(folders("sd15"))
    denoiser = Denoiser.of(checkpoint)
    run = Run(pairs := Pairs({"unet": denoiser.unet}, CONFIG), SETTINGS)
    list(run.optimise(task_of(checkpoint, denoiser)))
    present = {name: value.clone() for name, value in pairs.state_dict().items()}
    with with_average(run) as averaged:
        assert all(torch.equal(value, run.average[name]) for name, value in averaged.state_dict().items())
        assert any(not torch.equal(value, present[name]) for name, value in averaged.state_dict().items())
    assert all(torch.equal(value, present[name]) for name, value in pairs.state_dict().items())


@pytest.mark.slow(minutes=0.14)
@pytest.mark.parametrize(
    ("family", "precision"), [("sd15", "bf16"), ("sd15", "fp16"), ("sd2-v", "bf16"), ("sdxl", "bf16")]
)
def test_a_rounded_base_errs_as_its_precision_does(family: str, precision: str, folders: Callable[[str], Path]) -> None:
    """Its steps are as near to those in float32 as those of a float32 base that computes in it, twice rounded."""
    # plain descent: AdamW would take the sign of gradients that are zero but for rounding
    settings = replace(SETTINGS, steps=5, learning_rate=1.0, schedule="constant", optimizer="sgd")

    def trained(precision: str, base: torch.dtype) -> tuple[list[float], torch.Tensor]:
        checkpoint = load(folders(family))
        denoiser = Denoiser.of(checkpoint).to(base)
        torch.manual_seed(0)
        run = Run(pairs := Pairs(networks_of(denoiser, text=True), CONFIG), replace(settings, precision=precision))
        first = torch.cat([weight.detach().flatten().clone() for weight in pairs.parameters()])
        losses = [progress.loss for progress in run.optimise(task_of(checkpoint, denoiser))]
        assert {weight.dtype for weight in denoiser.parameters()} == {base}
        assert {value.dtype for value in (*pairs.parameters(), *run.averages.tensors())} == {torch.float32}
        assert run.average.keys() == pairs.state_dict().keys()  # nothing frozen
        return losses, torch.cat([weight.detach().flatten() for weight in pairs.parameters()]) - first

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    exact, autocast = trained("fp32", torch.float32), trained(precision, torch.float32)
    rounded = trained(precision, kind)
    # a prediction is off by half of eps in each rounding, its squared error by twice that, and several add up
    assert rounded[0] == pytest.approx(exact[0], rel=torch.finfo(kind).eps)
    assert rounded[0] != autocast[0]
    errors = [(found[1] - exact[1]).norm().item() for found in (rounded, autocast)]
    assert errors[0] <= 2 * errors[1]  # layers that compute in float32, such as norms, have rounded weights too
