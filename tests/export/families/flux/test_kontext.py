"""FLUX.1 Kontext draws what diffusers' pipeline draws: an image's tokens stand beside those that are drawn."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldmrt.export.components.table import components, example
from ldmrt.export.graph.to_onnx import to_onnx
from ldmrt.model import load
from ldmrt.model.library.flux import Pack
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.stage_of_configs import KONTEXT
from ldmrt.runtime.images.sizes import KONTEXT_SIZES, kontext_size
from ldmrt.runtime.samplers.noise.counter import FIRST, noise

from ....support.families.compared import Saved, close, ours_of, theirs
from ....support.families.flux import ASKED, SEEDS, latents_of
from ...test_tasks import picture

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]


@pytest.mark.parametrize("negative", [{}, {"negative_prompt": ["two oranges", "a lemon"], "true_cfg_scale": 3.0}])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (64, 64), (48, 80)])
def test_context_image(height: int, width: int, negative: dict[str, Any], flux: Saved) -> None:
    """Kontext's image is tokens beside those that are drawn, at the same positions of another plane."""
    images = [picture().resize((width, height)), picture().rotate(90).resize((width, height))]
    asked = {**ASKED, **negative, "guidance_scale": 2.5, "height": height, "width": width}
    ours = ours_of(flux["kontext"])(**asked, seed=SEEDS, image=images)
    reference = theirs(flux["kontext"], KONTEXT)
    latents = Pack()(torch.from_numpy(noise(SEEDS, FIRST, (16, height // 8, width // 8))))
    found = reference(**asked, image=images, latents=latents, max_area=height * width, _auto_resize=False,
                      output_type="latent").images  # fmt: skip
    close(ours.latents, latents_of(found, height, width))


@pytest.mark.parametrize("size", [(1024, 1024), (30, 1000), (1000, 30), (600, 800), (801, 600), (1080, 1920)])
def test_size_of_kontext_is_diffusers(size: tuple[int, int]) -> None:
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    assert {*KONTEXT_SIZES.items()} | {(high, wide) for wide, high in KONTEXT_SIZES.items()} == {
        *PREFERRED_KONTEXT_RESOLUTIONS
    }
    ratio = size[1] / size[0]
    _, width, height = min((abs(ratio - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    assert kontext_size(size) == (height, width)


@pytest.mark.slow(minutes=1)
def test_graph_of_kontext(flux: Saved, tmp_path: Path) -> None:
    """At an odd number of tokens along both sides; two programs' float32."""
    part = components(load(flux["kontext"]))["transformer"]
    engine = OrtEngine("transformer", to_onnx(part, tmp_path))
    given = example(part, {"batch": 3, "height": 48, "width": 80, "timesteps": 3})
    ours, expected = engine(**given)["out_hidden_states"], part.engine()(**given)["out_hidden_states"]
    assert ours.shape == (3, 16, 6, 10)
    assert np.abs(ours - expected).max() <= 2e-5 * np.abs(expected).max()


def test_a_folder_of_kontexts_tokens_is_refused(flux_bundle: Path, tmp_path: Path) -> None:
    """A directory of optimum's, whose graph takes tokens without the image's."""
    folder = tmp_path / "optimum"
    shutil.copytree(flux_bundle, folder)
    (folder / "ldmrt.json").unlink()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": KONTEXT}))
    with pytest.raises(LdmrtError, match=r"unsupported pipeline in model_index\.json; expected a bundle that ldmrt"):
        Bundle.open(folder).stages  # noqa: B018 which reads them
