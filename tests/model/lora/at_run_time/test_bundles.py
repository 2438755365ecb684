"""LoRAs at run time and merged at export give the same, in every precision and with a deep cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ldmrt.runtime
from ldmrt.export.bundle_writer import export_bundle
from ldmrt.model import load
from ldmrt.model.lora.merge import merge, read_lora

from .conftest import ASKED

WEIGHTS = {"attention": 0.8, "every": -0.5}
# Of the largest latent. In float32 ONNX Runtime's kernels differ where weights are inputs. In float16 the weights are
# rounded once more at run time, by half a unit of 2**-11 each.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3}
REQUESTS: dict[torch.dtype, list[dict[str, Any]]] = {
    torch.float32: [{}, {"deep_cache": 2, "num_inference_steps": 4}],
    torch.float16: [{}],
}


def exported(checkpoint: Path, folder: Path, dtype: torch.dtype, files: list[tuple[Path, float]]) -> Path:
    """Write a bundle of the tiny checkpoint with LoRAs merged."""
    loaded = load(checkpoint)
    merge(loaded.networks, [(read_lora(path), weight) for path, weight in files])
    loaded.networks["unet"].to(dtype)  # the other graphs are those of other tests
    for _ in export_bundle(loaded, folder, deep_cache=dtype == torch.float32):
        pass
    return folder


@pytest.mark.slow  # exports
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.filterwarnings("ignore:.* it has no parity certificate")
@pytest.mark.usefixtures("shared_exports")
def test_a_bundle_draws_as_one_with_the_loras_merged(
    dtype: torch.dtype, checkpoint: Path, every: Path, attention: Path, tmp_path: Path
) -> None:
    files = {"attention": attention, "every": every}
    merged = exported(checkpoint, tmp_path / "merged", dtype, [(files[name], w) for name, w in WEIGHTS.items()])
    plain = exported(checkpoint, tmp_path / "plain", dtype, [])
    with ldmrt.runtime.open(merged) as theirs, ldmrt.runtime.open(plain) as ours:
        for name, path in files.items():
            ours.load_lora(path, name)
        for request in REQUESTS[dtype]:
            expected = theirs(**{**ASKED, **request}).latents
            before = ours(**{**ASKED, **request}).latents
            found = ours(**{**ASKED, **request}, loras=WEIGHTS).latents
            assert np.abs(found - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max()
            assert np.abs(before - expected).max() > 0.05 * np.abs(expected).max()
