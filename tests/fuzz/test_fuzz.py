"""Two hundred mutants of each kind of file that a user may be handed: each is right, or one LdmrtError.

A kind gives a mutant's folder to what reads it. A traceback of anything else, a hang, or gigabytes of memory is a
failure, and the message gives its seed.
"""

import copy
import json
import random
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import ldmrt.runtime
from ldmrt.model import load
from ldmrt.model.lora.merge import merge, read_lora
from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.data.metadata import InvalidLines
from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.pipeline.pipeline import Pipeline

from ..support.loras import save, tiny_factors
from .mutants import mutate

pytestmark = [pytest.mark.slow(minutes=0.5)]
MUTANTS = 200
SECONDS = 20  # one mutant: what is opened here takes less than one
PROMPT = "a red apple, noto style, blue background"


@dataclass(frozen=True)
class Kind:
    """A folder with the files that are damaged, and what reads them."""

    folder: Path
    pattern: str
    read: Callable[[Path], Any]


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError when the block takes longer."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def kinds(certified: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """What is damaged, and what reads it."""
    place = tmp_path_factory.mktemp("fuzz")
    loaded = load(checkpoint)
    opened = ldmrt.runtime.open(certified, backend="onnxruntime")
    expected = draw(opened)

    lora = place / "lora"
    save(tiny_factors(checkpoint), lora / "style.safetensors", note="x")

    images = place / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        Image.fromarray(pixels).save(images / f"a.{suffix}")
    rows = [{"file_name": f"a.{suffix}", "text": f"a {suffix} image"} for suffix in ("png", "jpg", "bmp")]
    data = Path(shutil.copytree(images, place / "data"))
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def open_bundle(folder: Path) -> None:
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            images = draw(ldmrt.runtime.open(folder, backend="onnxruntime"))
        warned = any(issubclass(one.category, LdmrtWarning) for one in shown)
        assert warned or np.array_equal(images, expected), "another image, and no warning"

    def load_checkpoint(folder: Path) -> None:
        for network in load(folder).networks.values():
            assert_finite(network)

    def merge_lora(folder: Path) -> None:
        networks = copy.deepcopy(dict(loaded.networks))
        merge(networks, [(read_lora(next(folder.iterdir(), folder / "style.safetensors")), 0.8)])
        for network in networks.values():
            assert_finite(network)

    def start_from_image(folder: Path) -> None:
        for path in folder.iterdir():
            draw(opened, image=path, strength=0.5)

    def train_on(folder: Path) -> None:
        dataset = ImageFolder.open(folder)
        for i in range(4):
            assert dataset.draw(0, i).caption

    return {
        "bundle": Kind(certified, "**/*", open_bundle),
        "checkpoint": Kind(checkpoint, "**/*", load_checkpoint),
        "lora": Kind(lora, "*", merge_lora),
        "image": Kind(images, "*", start_from_image),
        "metadata": Kind(data, "metadata.jsonl", train_on),
    }


def draw(pipeline: Pipeline, **options: Any) -> NDArray[np.uint8]:
    return pipeline(PROMPT, num_inference_steps=2, seed=1, **options).pixels


def assert_finite(network: torch.nn.Module) -> None:
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())


@pytest.mark.parametrize("name", ["bundle", "checkpoint", "lora", "image", "metadata"])
def test_mutants_are_right_or_refused(kinds: dict[str, Kind], name: str, tmp_path: Path) -> None:
    kind, failures, refused = kinds[name], [], 0
    files = sorted(path.relative_to(kind.folder) for path in kind.folder.glob(kind.pattern) if path.is_file())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(MUTANTS):
        rng, folder = random.Random(f"{name} {seed}"), tmp_path / "mutant"
        shutil.copytree(kind.folder, folder)
        file = rng.choice(files)
        mutate(folder / file, rng)
        try:
            with time_limit(SECONDS):
                kind.read(folder)
        except LdmrtError as error:
            refused += 1
            lines = str(error).splitlines()
            if len(str(error)) > 2000 or len(lines) > (24 if isinstance(error, InvalidLines) else 2):
                failures.append(f"seed {seed}, {file}: a long message: {lines[0][:200]}")
        except BaseException as error:
            failures.append(f"seed {seed}, {file}: {type(error).__name__}: {str(error)[:200]}")
        shutil.rmtree(folder)
    assert failures == []
    assert refused > MUTANTS // 10  # the mutants are harmful at all
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 20, f"memory grew by {grown >> 10} MB"  # KiB: a gigabyte, for files of less than a megabyte
