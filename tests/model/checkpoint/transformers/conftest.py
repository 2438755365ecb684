"""Small checkpoints of Stable Diffusion 3 and FLUX.1 as folders, and the rows of single files made as small."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ldmrt.model.checkpoint.transformers import configs
from ldmrt.runtime.bundle.stage_of_configs import FLUX as FLUX_KIND
from ldmrt.runtime.bundle.stage_of_configs import SD3 as SD3_KIND

from ....support.families.compared import Saved
from ....support.families.flux import FLUX, save_flux
from ....support.families.original_transformers import (
    FLUX_TEXTS,
    SD3_TEXTS,
    State,
    flux_file,
    sd3_file,
    text_files,
    vae_file,
    with_prefix,
)
from ....support.families.stable_diffusion_3 import SD3, save_sd3

UNET = "model.diffusion_model."
NAMES = ("sd3", "sd3-without-t5", "sd35-medium", "dev", "schnell", "fill", "canny")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folders of families by their names, as diffusers saves them. Do not write into them."""
    return Saved(
        lambda name, folder: (save_sd3 if name in SD3 else save_flux)(name, folder), tmp_path_factory.mktemp("folders")
    )


@pytest.fixture
def small(folders: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the families with the configs of the small checkpoints."""
    rows = {}
    for kind, name in ((SD3_KIND, "sd3"), (FLUX_KIND, "dev")):
        row = configs.FAMILIES[kind]
        own = {part: json.loads((folders[name] / part / "config.json").read_text()) for part in ("vae", *row.texts)}
        texts = {part: replace(text, config=own[part]) for part, text in row.texts.items()}
        rows[kind] = replace(row, vae=own["vae"], texts=texts)
    monkeypatch.setattr(configs, "FAMILIES", rows)
    monkeypatch.setattr(configs, "HEAD", SD3["sd3"][0]["attention_head_dim"])
    monkeypatch.setattr(configs, "AXES", FLUX["dev"][1]["axes_dims_rope"])


def states(folder: Path) -> dict[str, State]:
    """The weights of every network in a folder."""
    return {path.parent.name: load_file(path) for path in sorted(folder.glob("*/*.safetensors"))}


def levels_of(folder: Path) -> int:
    """How often the autoencoder of a folder halves an image, and one."""
    return len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])


def transformer_file(name: str, state: State) -> State:
    """The transformer in its original names."""
    return (sd3_file if name in SD3 else flux_file)(state)


def whole_file(name: str, folder: Path, change: Callable[[State], Any] | None = None) -> State:
    """Everything in one file: Stability AI's, or ComfyUI's of FLUX.1."""
    parts = states(folder)
    if change is not None:
        change(parts["transformer"])
    file = with_prefix(UNET, transformer_file(name, parts["transformer"]))
    file |= with_prefix("first_stage_model." if name in SD3 else "vae.", vae_file(parts["vae"], levels_of(folder)))
    file |= text_files(parts, SD3_TEXTS if name in SD3 else FLUX_TEXTS)
    return {key: value.contiguous() for key, value in file.items()}
