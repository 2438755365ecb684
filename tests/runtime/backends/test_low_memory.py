"""Low memory: who is open when, and that the pictures are the same."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import ldmrt.runtime
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.low_memory import in_low_memory
from ldmrt.runtime.bundle.manifest import MANIFEST
from ldmrt.runtime.pipeline.autoencoder.decode import Decoding
from ldmrt.runtime.tensors import TensorSpec

NAMES = ("text_encoder", "text_encoder_2", "controlnet_canny", "adapter_sketch", "unet", "vae_encoder", "vae_decoder")


class Noted:
    """An engine that enters and leaves a list."""

    inputs = (TensorSpec("x", "float32", (1,)),)
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, name: str, there: list[str]) -> None:
        self._name, self._there = name, there
        there.append(name)

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        assert self._name in self._there  # a closed one must never be called
        return arrays

    def close(self) -> None:
        self._there.remove(self._name)


def test_one_stage_at_a_time() -> None:
    there: list[str] = []
    specs = dict.fromkeys(NAMES, (Noted.inputs, Noted.outputs))
    engines = LazyEngines(in_low_memory({name: partial(Noted, name, there) for name in NAMES}, specs))
    held = dict(engines)
    assert held["unet"].inputs == Noted.inputs
    assert there == []  # what is known is not asked
    seen = []
    for name in ("text_encoder", "text_encoder_2", "vae_encoder", "controlnet_canny", "unet", "unet", "vae_decoder"):
        held[name](x=np.zeros(1))
        seen.append(list(there))
    assert seen[:3] == [["text_encoder"], ["text_encoder_2"], ["vae_encoder"]]
    assert seen[3:6] == [["controlnet_canny"], *[["controlnet_canny", "unet"]] * 2]
    assert seen[6:] == [["vae_decoder"]]
    engines.close()
    assert there == []


def test_unknown_inputs_are_asked_of_the_engine() -> None:
    there: list[str] = []
    engines = LazyEngines(in_low_memory({name: partial(Noted, name, there) for name in NAMES}, {}))
    assert engines["unet"].inputs == Noted.inputs
    assert engines["vae_decoder"].inputs == Noted.inputs
    assert there == ["vae_decoder"]


@pytest.mark.usefixtures("row_by_row")
@pytest.mark.parametrize("listed", [True, False])
def test_same_pictures(bundle: Path, tmp_path: Path, listed: bool) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    if not listed:
        (copy / MANIFEST).unlink()
    made = []
    for low_memory in (False, True):
        pipeline = ldmrt.runtime.open(copy, low_memory=low_memory)
        first = pipeline("two pears", num_images_per_prompt=2, num_inference_steps=3, seed=4, scheduler="euler_a")
        made.append([first, pipeline("a cat", num_inference_steps=2, image=first.pixels[0], seed=1)])
        pipeline.close()
    for plain, low in zip(*made, strict=True):
        # Kernels that take weights as they lie add up in another order: float32's rounding through three rows.
        np.testing.assert_allclose(low.latents, plain.latents, rtol=0, atol=1e-5 * np.abs(plain.latents).max())
        assert np.abs(low.pixels.astype(int) - plain.pixels).max() <= 1


def test_tiles_where_the_picture_is_large() -> None:
    how = Decoding(sparing=True)
    assert [how.cells(8, size) for size in ((64, 96), (97, 64), (128, 128))] == [None, 64, 64]
    assert Decoding(tile=256, sparing=True).cells(8, (64, 64)) == 32
    assert Decoding().cells(8, (512, 512)) is None
