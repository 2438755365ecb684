"""Training to draw classes: what they are, and the steps of diffusers' UNet2DModel with num_class_embeds."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F

from ldmrt.model.checkpoint.load import load, load_autoencoder
from ldmrt.model.config import to_config
from ldmrt.model.networks.autoencoder import Autoencoder
from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.data.metadata import Row
from ldmrt.model.training.diffusion.objective import TIMESTEPS, Objective
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Progress, TrainingTask
from ldmrt.model.training.tasks import presets
from ldmrt.model.training.tasks.classes import Classes, class_task, classes_of_captions
from ldmrt.model.training.tasks.finetune import Conditions, Denoiser, conditioned_task
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from ....support.pipelines import randomise
from ..captioned import CAPTIONS, Three
from ..resumed import assert_resumes
from .diffusers_steps import steps_of_diffusers

SETTINGS = Settings(steps=5, batch=2, learning_rate=1e-4, warmup=0, schedule="constant", seed=3)
NAMES, DROPOUT = sorted(CAPTIONS), 0.5
KINDS = Classes(NAMES, lambda sample: sample.caption)


def unet_of(seed: int = 0) -> PlainUNet:
    small = {"block_out_channels": (16, 32), "norm_num_groups": 4, "attention_head_dim": 8}
    torch.manual_seed(seed)
    unet = PlainUNet(replace(presets.CLASSES, in_channels=4, out_channels=4, num_class_embeds=4, **small))
    return randomise(unet, seed)  # type: ignore[no-any-return]


def task_of(unet: PlainUNet, vae: Autoencoder) -> TrainingTask:
    return class_task(unet, Three(), vae, Objective.of(presets.SCHEDULER, "cpu"), KINDS, DROPOUT)


def twin(unet: PlainUNet) -> "diffusers.UNet2DModel":
    config = {key: value for key, value in to_config("UNet2DModel", unet.config).items() if key != "_class_name"}
    theirs = diffusers.UNet2DModel(**config)
    theirs.load_state_dict(unet.state_dict())
    return theirs


def loss_of_diffusers(unet: "diffusers.UNet2DModel", vae: "diffusers.AutoencoderKL", first: int) -> torch.Tensor:
    samples, draws = [Three().draw(3, first + i) for i in range(2)], Draws(3, range(first, first + 2))
    pixels = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) / 127.5 - 1 for s in samples])
    with torch.no_grad():
        spread = vae.encode(pixels).latent_dist
    latents = (spread.mean + spread.std * draws.normal("latents", spread.mean.shape[1:])) * vae.config.scaling_factor
    labels = [NAMES.index(sample.caption) for sample in samples]
    told = [3 if drop else label for drop, label in zip(draws.chance("class dropout", DROPOUT), labels, strict=True)]
    noise, times = draws.normal("noise", latents.shape[1:]), draws.integers(TIMESTEPS, 1000)
    noisy = diffusers.DDIMScheduler.from_config(presets.SCHEDULER).add_noise(latents, noise, times)
    return F.mse_loss(unet(noisy, times, class_labels=torch.tensor(told)).sample, noise)


def test_gradients_and_five_steps_are_those_of_diffusers(folders: Callable[[str], Path]) -> None:
    unet, vae = unet_of(), load_autoencoder(folders("sd15"))
    theirs, their_vae = twin(unet).train(), diffusers.AutoencoderKL.from_pretrained(folders("sd15") / "vae")
    samples, draws = [Three().draw(3, i) for i in range(2)], Draws(3, range(2))
    task_of(unet, vae).loss_of(samples, draws)["denoising"].mean().backward()
    loss_of_diffusers(theirs, their_vae, 0).backward()
    ours = dict(unet.named_parameters())
    largest = max(p.grad.norm().item() for p in theirs.parameters() if p.grad is not None)
    for name, parameter in theirs.named_parameters():
        error = (ours[name].grad - parameter.grad).norm()  # type: ignore[operator]
        assert error <= 1e-6 * largest, (name, error)  # float32 sums in another order
    rows = ours["class_embedding.weight"].grad.norm(dim=1)  # type: ignore[union-attr]
    assert rows.count_nonzero() in (1, 2)  # a row for each class that the two samples were told

    run = Run(unet_of(), SETTINGS)
    losses = [progress.loss for progress in run.optimise(task_of(run.module, vae))]
    theirs = twin(unet_of()).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)
    expected = []
    for step in range(5):
        optimizer.zero_grad()
        loss = loss_of_diffusers(theirs, their_vae, 2 * step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        expected.append(loss.item())
    assert losses[0] == pytest.approx(expected[0], rel=1e-6)  # float32 sums in another order
    assert losses == pytest.approx(expected, rel=1e-5)  # and those of four steps before
    for name, value in theirs.state_dict().items():
        error = (run.module.state_dict()[name] - value).norm() / value.norm()
        softmaxed = name.endswith("to_k.bias")  # of no effect: its gradient is rounding, and AdamW takes its sign
        assert softmaxed or error <= 1e-5, (
            name,
            error,
        )  # rounding of gradients, and AdamW divides small ones by themselves


def test_the_null_class_is_told_as_often_as_it_shall_be(folders: Callable[[str], Path]) -> None:
    unet, vae = unet_of(), load_autoencoder(folders("sd15"))
    told = []
    unet.register_forward_hook(lambda _, args, kwargs, out: told.append(kwargs["class_labels"]), with_kwargs=True)
    samples = [Three().draw(0, i) for i in range(60)]
    task_of(unet, vae).loss_of(samples, Draws(0, range(60)))
    labels = torch.tensor([NAMES.index(sample.caption) for sample in samples])
    null = told[0] == 3
    assert torch.equal(told[0][~null], labels[~null])
    assert 15 <= null.sum() <= 45  # 30 and four standard deviations of 3.9


def of_text(folder: Path) -> tuple[Denoiser, TrainingTask]:
    """A U-Net that is told a class beside the caption, and what it learns."""
    checkpoint = load(folder)
    denoiser = Denoiser(checkpoint.unet, **checkpoint.text_encoders)  # type: ignore[arg-type]
    denoiser.text_encoder.requires_grad_(False)
    tokenizers, conditions = {"text_encoder": Tokenizer(checkpoint.tokenizers["tokenizer"])}, Conditions(dropout=0.5)
    objective = Objective.of(checkpoint.scheduler, "cpu")
    task = conditioned_task(
        denoiser, Three(), checkpoint.vae, tokenizers, objective, conditions, classes=KINDS  # type: ignore[arg-type]
    )  # fmt: skip
    return denoiser, task


def test_five_steps_beside_text_are_those_of_diffusers(folders: Callable[[str], Path]) -> None:
    def labels(pipe: Any, pixels: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, dict[str, Any]]:
        """No channels, and the class; of the samples whose captions are left out in half the class is too."""
        captions = [Three().draw(3, i).caption for i in draws.samples]
        drawn = draws.uniform("caption dropout").tolist()
        told = [3 if 0.25 <= u < 0.75 else NAMES.index(each) for u, each in zip(drawn, captions, strict=True)]
        return torch.empty(2, 0, 8, 8), {"class_labels": torch.tensor(told)}

    denoiser, task = of_text(folders("classes"))
    losses = [progress.loss for progress in Run(denoiser, SETTINGS).optimise(task)]
    expected, weights = steps_of_diffusers(folders("classes"), beside=labels)
    assert losses[0] == pytest.approx(expected[0], rel=1e-6)  # float32 sums in another order
    assert losses == pytest.approx(expected, rel=1e-5)  # and those of four steps before
    table = "unet.class_embedding.weight"
    assert not torch.equal(denoiser.state_dict()[table], of_text(folders("classes"))[0].state_dict()[table])
    for name, value in weights.items():
        error = (denoiser.state_dict()[name] - value).norm() / value.norm()
        assert error <= 1e-5, (name, error)  # rounding of gradients, and AdamW divides small ones by themselves


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_beside_text_takes_the_same_steps(
    accumulate: int, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    def begin() -> tuple[Run, Iterator[Progress]]:
        denoiser, task = of_text(folders("classes"))
        run = Run(denoiser, replace(SETTINGS, steps=6, schedule="cosine", accumulate=accumulate))
        return run, run.optimise(task)

    assert_resumes(begin, tmp_path / "state")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_takes_the_same_steps(accumulate: int, folders: Callable[[str], Path], tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=6, schedule="cosine", accumulate=accumulate)
    vae = load_autoencoder(folders("sd15"))

    def begin() -> tuple[Run, Iterator[Progress]]:
        run = Run(unet_of(), settings)
        return run, run.optimise(task_of(run.module, vae))

    assert_resumes(begin, tmp_path / "state")


def test_classes_are_captions(tmp_path: Path) -> None:
    def folder(*texts: str, skipped: tuple[str, ...] = ()) -> ImageFolder:
        rows = tuple(Row(i, f"{i}.png", text) for i, text in enumerate(texts))
        return ImageFolder(tmp_path, rows, skipped=frozenset(skipped))

    assert classes_of_captions([folder("dog", "cat", "dog", "ant", skipped=("3.png",))]).names == ["cat", "dog"]
    assert classes_of_captions([folder("dog", "dog"), folder("ant")]).names == ["ant", "dog"]
    with pytest.raises(LdmrtError, match=r"every image has a class of its own; expected fewer classes .*; found 2"):
        classes_of_captions([folder("dog", "cat")])
    several = ImageFolder(tmp_path, (Row(1, "0.png", "dog", ("cat",)), Row(2, "1.png", "dog")))
    with pytest.raises(LdmrtError, match=r"0\.png is of several classes; expected one; found dog, cat"):
        classes_of_captions([several])
