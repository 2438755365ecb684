"""Two hundred bundles with something changed at random: each is right, or refused in one or two lines."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.bundle.engines.engine_key import Range, Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, engines, model_digests, write_engine
from ldmrt.runtime.bundle.engines.unused import unused_engines

from ...support.damage.bundle_mutants import mutate

SECONDS = 20  # for one mutant; it takes a fraction of one
MUTANTS = 200
pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")


@pytest.fixture(scope="module")
def original(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine."""
    copy = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("mutants") / "original"))
    opened, ranges = Bundle.open(copy), {"sample": Range((2, 4, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8))}
    recipe = Recipe("unet", *model_digests(opened, "unet"), "fp32", "tensorrt-rtx", "1.7.1", "sm89", (ranges,))
    write_engine(copy / FOLDER, recipe, b"a plan", {"scratch": 5})
    return copy


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def use(path: Path) -> None:
    """All that commands without a checkpoint ask of a bundle."""
    opened = Bundle.open(path)
    for one in engines(path):
        assert len(str(one).splitlines()) >= 1
    unused_engines(opened, {})
    _ = opened.certificate_issues, opened.uncovered
    if opened.manifest.get("certificate") is not None:
        _ = opened.reference
    with ldmrt_pipeline(path) as pipeline:
        images = pipeline("a cat", num_inference_steps=1, guidance_scale=1.0).pixels
    assert images.dtype == np.uint8


class ldmrt_pipeline:
    """A pipeline that is closed in the end."""

    def __init__(self, path: Path) -> None:
        self._pipeline = ldmrt.runtime.open(path, "onnxruntime")

    def __enter__(self) -> Any:
        return self._pipeline

    def __exit__(self, *_: object) -> None:
        self._pipeline.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(MUTANTS))
def test_every_mutant_is_right_or_refused(original: Path, tmp_path: Path, seed: int) -> None:
    path = Path(shutil.copytree(original, tmp_path / "bundle"))
    done = mutate(path, seed)
    try:
        use(path)
    except LdmrtError as error:
        said = str(error)
    else:
        return
    assert len(said.splitlines()) <= 2, done
    assert len(said) < 3000, done
    assert said.replace("\n", "").isprintable(), done
