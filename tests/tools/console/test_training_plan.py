"""`ldmrt train ... --plan`: what it prints is what the profiler measures of a run, and nothing is written."""

import gc
import importlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmrt.model.checkpoint.load import load_autoencoder
from ldmrt.model.training.loop.memory import MemoryPlan, bytes_of
from ldmrt.model.training.tasks import presets
from ldmrt.tools.console.training import run as running

from ...model.training.loop.measured import peak_of
from ...support.pipelines import save_pipeline

TASKS = "ldmrt.tools.commands.training.tasks"
Words = Callable[..., list[object]]
FROM = ("finetune", "lora", "inpaint", "upscale")  # start from a checkpoint
SMALL = {"block_out_channels": (32, 64), "norm_num_groups": 8}
BARE = ("--size", 16, "--steps", 3)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three images with captions and classes."""
    folder, rows = tmp_path / "pictures", list[str]()
    folder.mkdir()
    for i, (text, kind) in enumerate({"a red apple": "fruit", "two pears": "fruit", "a penguin": "bird"}.items()):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": text, "kind": kind}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def words(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Words:
    """Makes the command line of a training of small networks, but for its --out."""
    autoencoder = {"block_out_channels": (8, 16), "norm_num_groups": 2, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    monkeypatch.setattr(presets, "AUTOENCODER", replace(presets.AUTOENCODER, **autoencoder, **blocks))
    for name in ("UNET", "CLASSES"):
        monkeypatch.setattr(presets, name, replace(getattr(presets, name), **SMALL))
    source = save_pipeline("sd15", tmp_path / "source")

    def made(task: str, *more: object) -> list[object]:
        own = {"upscaler": ["--crop", 16], "classes": ["--caption-column", "kind"]}.get(task, [])
        own += ["--from", source, "--previews", 0] if task in FROM else []
        own += ["--autoencoder", source] if task in ("ldm", "classes", "upscaler") else []
        own += ["--vocabulary", 600] if task == "ldm" else []
        return ["train", task, "--data", pictures, *BARE, *own, *more]

    return made


@pytest.fixture
def planned(ldmrt: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MemoryPlan]:
    """Runs a command with --plan, which writes nothing; returns what it prints."""

    def run(out: Path, words: list[object]) -> MemoryPlan:
        found = list[MemoryPlan]()
        with monkeypatch.context() as patched:
            patched.setattr(running, "show_memory", lambda plan, *_: found.append(plan))
            ran = ldmrt(*words, "--plan", "--out", out)
        assert ran.code == 0, ran.err
        assert not out.exists()
        return found[0]

    return run


def storages() -> dict[int, torch.Tensor]:
    """A tensor of each storage that there is, by address."""
    gc.collect()
    kinds = torch.Tensor, torch.nn.Parameter  # and not those of the exporter that have no memory
    every = [
        one
        for one in gc.get_objects()
        if type(one) in kinds and one.device.type == "cpu" and one.layout == torch.strided
    ]
    return {one.untyped_storage().data_ptr(): one for one in every}


def measured(ldmrt: Any, words: list[object], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """The bytes of tensors before the steps of a run, the most in these, and those when its networks are copied then.

    Those that are there before the first step are counted one by one; from then on the profiler counts.
    """
    before, found = storages(), list[int]()

    def run_training(run: Any, task: Any, *_: object) -> None:
        known = bytes_of([one for address, one in storages().items() if address not in before], "cpu")
        most, copied = peak_of(lambda: len(list(run.optimise(task))), then=run.averaged)
        found.extend([known, known + most, known + copied])

    with monkeypatch.context() as patched:
        for name in (f"{TASKS}.{words[1]}", "ldmrt.tools.console.training.base"):  # whichever of them runs it
            patched.setattr(importlib.import_module(name), "run_training", run_training, raising=False)
        ran = ldmrt(*words)
    assert ran.code == 0, ran.err
    return found[0], found[1], found[2]


@pytest.mark.slow(minutes=0.09)
def test_a_base_in_bf16_takes_half_the_memory(words: Words, planned: Any, tmp_path: Path) -> None:
    command = words("lora", "--batch", 2, "--rank", 2, "--precision", "bf16")
    whole, half = (planned(tmp_path / "out", [*command, *more]) for more in ((), ("--base-precision", "bf16")))
    vae = load_autoencoder(Path(str(command[command.index("--from") + 1])))
    kept = bytes_of([*vae.parameters(), *vae.buffers()], "cpu")  # the autoencoder stays in float32
    assert half.weights == whole.weights
    assert half.frozen - kept == pytest.approx((whole.frozen - kept) / 2, rel=0.02)  # but for buffers of integers


@pytest.mark.slow(minutes=0.12)
def test_a_plan_counts_regularisation_images(words: Words, planned: Any, pictures: Path, tmp_path: Path) -> None:
    """Their latents are kept too, and as many are computed at once."""
    command = words("finetune", "--batch", 2)
    plain, both = (planned(tmp_path / "out", [*command, *more]) for more in ((), ("--regularisation", pictures)))
    assert (both.latents, both.samples) == (2 * plain.latents, 2 * plain.samples)
    # beside what is kept of images there are the scalars that sum and weight losses
    assert both.activations == pytest.approx(2 * plain.activations, rel=1e-3)


CASES = {
    "autoencoder": "--batch 6",
    "autoencoder, adversarial": "--batch 5 --adversarial 0.5 --discriminator-layers 1 --accumulate 2",
    "autoencoder, vq": "--batch 4 --kind vq --codes 64 --codebook average --checkpointing",
    "ldm": "--batch 7 --accumulate 2 --precision bf16",
    "finetune": "--batch 6 --train-text-encoder --ema 0.9 --ema 0.99",
    "finetune, checkpointing": "--batch 6 --accumulate 3 --checkpointing --cache disk",
    "finetune, buckets": "--batch 4 --buckets",  # of three images
    "finetune, regularisation": "--batch 3 --accumulate 2 --regularisation {pictures}",
    "lora": "--batch 5 --rank 2 --optimizer lion",
    "lora, bf16": "--batch 6 --rank 2 --accumulate 2 --checkpointing --precision bf16",
    "lora, base in bf16": "--batch 6 --rank 2 --precision bf16 --base-precision bf16",
    "inpaint": "--batch 4 --optimizer sgd",
    "upscale": "--batch 4 --cache none",
    "classes": "--batch 8 --accumulate 2",
    "unconditional": "--batch 3 --variance learned_range",
    "upscaler": "--batch 3 --checkpointing",
}
QUICK = ("ldm",)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow(minutes=1)) for case in CASES]
)
def test_a_plan_is_within_a_tenth_of_the_profiler(
    ldmrt: Any, words: Words, planned: Any, pictures: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = words(case.split(",")[0], *CASES[case].format(pictures=pictures).split())
    plan = planned(tmp_path / "planned", command)
    known, peak, saving = measured(ldmrt, [*command, "--out", tmp_path / "out"], monkeypatch)
    # 70 kB: the noise schedule's tables, which nobody plans
    assert 0 <= known - plan.weights - plan.frozen - plan.averages <= 70_000
    # a tenth is what is promised; what kernels allocate for themselves is known for convolutions alone
    assert plan.peak == pytest.approx(peak, rel=0.1)
    assert plan.saving == pytest.approx(saving, rel=0.1)


def test_what_is_printed(ldmrt: Any, words: Words, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    ran = ldmrt(*words("autoencoder", "--batch", 4), "--plan", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert sorted(tmp_path.rglob("*")) == before
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ran.out.splitlines() if "│" in line]
    assert [row[0] for row in rows] == [
        "weights that learn", "gradients", "optimizer (adamw)", "averages (1)", "activations of 4 images",
        "peak of a step", "copies at a checkpoint, without previews",
        "--accumulate 2", "--accumulate 4", "--precision bf16", "--checkpointing",
        "--accumulate 4 --precision bf16 --checkpointing", "--optimizer adamw8bit",
    ]  # fmt: skip
    assert "memory on cpu" in ran.out
    assert all(re.fullmatch(r"[0-9.]+ MB", cell) for row in rows for cell in row[1:])


def test_a_plan_is_of_one_process(ldmrt: Any, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = words("autoencoder", "--batch", 4, "--plan", "--out", tmp_path / "out")
    ran = ldmrt(*command, "--processes", 3)  # of which none is started
    assert ran.code == 0, ran.err
    assert "memory on cpu, in the first of 3 processes" in ran.out
    assert "activations of 2 images" in ran.out
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert "--plan is of one process; found 2 processes" in ldmrt(*command).error
    assert not (tmp_path / "out").exists()


def test_a_plan_refuses_what_a_run_refuses(ldmrt: Any, words: Words, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for more in (["--size", 15], ["--accumulate", 5], ["--change", "steps"], ["--kl-weight", "nan"]):
        command = [*words("autoencoder", "--batch", 2), *more, "--out", out]
        assert ldmrt(*command, "--plan").error == ldmrt(*command).error
    command = [*words("autoencoder", "--batch", 2), "--out", out]
    assert "--plan reads no saved state" in ldmrt(*command, "--resume", "--plan").error
    assert not out.exists()
    assert ldmrt(*command, "--steps", 1).code == 0
    assert "\nplan = " not in (out / "recipe.toml").read_text()
    assert "step-000001 exists already" in ldmrt(*command, "--plan").error


@pytest.mark.slow(minutes=0.15)
def test_latents_in_memory_are_those_of_all_images(words: Words, planned: Any, tmp_path: Path) -> None:
    """3 images, mirrored or not; of shards on the disk as many as wait to be written."""
    one = 2 * 4 * 8 * 8 * 4  # mean and log-variance of 4 channels, as float32
    found = {
        more: planned(tmp_path / "out", words("finetune", "--batch", 1, "--steps", 400, *more.split())).latents
        for more in ("", "--flip", "--flip --cache none", "--flip --cache disk --latents fp16", "--random-crop")
    }
    assert list(found.values()) == [3 * one, 6 * one, 0, 6 * one // 2, 0]
