"""Wherever a training is stopped or killed, the run that goes on ends with the bits of one that ran through."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldmrt.model.training.loop.states.kept import saved_states

from .saved import written

pytestmark = [
    pytest.mark.slow(minutes=3),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
]
KILLS = int(os.environ.get("KILLS", "5"))  # of each training, by these signals in turn
SIGNALS = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130}  # and how a run ends by them
TASKS = {
    "autoencoder": ("--adversarial", 0.5, "--discriminator-layers", 1),
    "ldm": ("--vocabulary", 600, "--autoencoder", "SOURCE"),
    "classes": ("--caption-column", "kind", "--autoencoder", "SOURCE"),
    "unconditional": (),
    **dict.fromkeys(("finetune", "inpaint", "upscale"), ("--from", "SOURCE", "--previews", 0)),
    "lora": ("--from", "SOURCE", "--previews", 0, "--rank", 2),
    "upscaler": ("--crop", 8, "--autoencoder", "SOURCE"),
}
# Loads what trainings need, and runs one for each line of its input, [words, seconds, signal], in a process of its own,
# which is sent the signal after so many seconds. It answers with how that has ended, and after how long.
FORKS = """
import json, os, signal, sys, time
from dataclasses import replace
import torch, transformers, PIL.Image, rich.progress
import ldmrt.export.components.torch_pipeline, ldmrt.model.checkpoint.load, ldmrt.tools.commands.training.train
import ldmrt.model.training.loop.run, ldmrt.tools.console.training.run
from ldmrt.model.training.tasks import presets
from ldmrt.tools.cli import main
from ldmrt.tools.console.training import checks

transformers.CLIPTextModel, transformers.CLIPTextConfig  # which are read when they are asked for
torch.set_num_threads(1)
small = {"block_out_channels": (8, 16), "norm_num_groups": 4}
two = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
coders = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
presets.AUTOENCODER = replace(presets.AUTOENCODER, **small, **coders, layers_per_block=1)
presets.UNET = replace(presets.UNET, **small, attention_head_dim=2)
presets.CLASSES = replace(presets.CLASSES, **small, attention_head_dim=8)
presets.UNCONDITIONAL = replace(presets.UNCONDITIONAL, **small, **two, attention_head_dim=8)
plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
presets.UPSCALER = replace(
    presets.UPSCALER, **plain, block_out_channels=(16, 16), norm_num_groups=4, num_class_embeds=5
)
checks.SHOWN = 4
ENDING = (signal.SIGINT, signal.SIGTERM)
for line in sys.stdin:
    words, seconds, number = json.loads(line)
    begin = time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    if not (child := os.fork()):
        sys.stdout, sys.argv = sys.stderr, ["ldmrt", *words]
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            main()
            code = 0
        except SystemExit as left:
            code = left.code or 0
        except KeyboardInterrupt:  # before the command has begun
            code = 130
        sys.stderr.flush()
        os._exit(code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if number and time.monotonic() - begin >= seconds:
            os.kill(child, number)
            number = 0
        time.sleep(0.002)
    print(json.dumps([os.waitstatus_to_exitcode(ended[1]), time.monotonic() - begin]), flush=True)
"""


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator["subprocess.Popen[str]"]:
    with (tmp_path_factory.mktemp("forks") / "err").open("w") as said:
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, "-c", FORKS], stdin=pipe, stdout=pipe, stderr=said, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def run(forks: "subprocess.Popen[str]", words: tuple[object, ...], seconds: float = 0, number: int = 0) -> Any:
    assert forks.stdin is not None
    assert forks.stdout is not None
    forks.stdin.write(json.dumps([list(map(str, words)), seconds, number]) + "\n")
    forks.stdin.flush()
    return json.loads(forks.stdout.readline())


@pytest.mark.parametrize("task", TASKS)
def test_any_end_is_resumed_to_the_bit(
    task: str, forks: "subprocess.Popen[str]", places: tuple[Path, Path], tmp_path: Path
) -> None:
    pictures, source = places
    own = [str(source) if word == "SOURCE" else word for word in TASKS[task]]
    words = ("train", task, "--data", pictures, "--size", 16, "--batch", 2, "--accumulate", 2, "--warmup", 0, *own)
    words = (*words, "--steps", 12, "--save-every", 4, "--log-every", 1, "--learning-rate", 1e-3)
    code, lasts = run(forks, (*words, "--out", tmp_path / "whole"))
    assert code == 0
    expected, names = written(tmp_path / "whole"), list(SIGNALS)
    chance, number, kills, goings_on = random.Random(task), 0, 0, 0
    while kills < KILLS or goings_on < 2:
        out = tmp_path / f"{number}"
        resumed = ("--resume",) if saved_states(out) else ()
        name, goings_on = names[kills % len(names)], goings_on + len(resumed)
        code, took = run(forks, (*words, "--out", out, *resumed), chance.uniform(0, lasts), getattr(signal, name))
        assert code in (0, SIGNALS[name], -getattr(signal, name)), (name, code)  # the last before it has begun
        kills += code != 0
        if code == 0:
            assert written(out) == expected
            number, lasts = number + 1, lasts if resumed else took  # on a machine that others use too
    resumed = ("--resume",) if saved_states(out) else ()
    assert run(forks, (*words, "--out", out, *resumed))[0] == 0
    assert written(out) == expected
