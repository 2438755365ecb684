"""The original names of transformers, against diffusers' own conversion of the same tensors."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from torch import Tensor

from ldmrt.model.checkpoint.transformers.files import find_transformer
from ldmrt.model.library.flux import FluxConfig
from ldmrt.model.library.stable_diffusion_3 import SD3Config
from ldmrt.model.weights.lazy import Lazy

from ....support.families.compared import Saved
from ....support.families.original_transformers import flux_file, sd3_file, vae_file
from ....support.families.stable_diffusion_3 import SD3
from .conftest import NAMES, levels_of, states, transformer_file

# Models as they are published, by the configs beside them.
LARGE = {"joint_attention_dim": 4096, "pooled_projection_dim": 2048, "attention_head_dim": 64, "out_channels": 16}
PUBLISHED: dict[str, dict[str, Any]] = {
    "sd3-medium": {
        **LARGE, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192,
    },
    "sd35-medium": {
        **LARGE, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
        "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)),
    },
    "flux-dev": {"guidance_embeds": True},
    "flux-fill": {"guidance_embeds": True, "in_channels": 384, "out_channels": 64},
}  # fmt: skip


def splitting(tensor: Tensor, sizes: Any, dim: int = 0) -> Any:
    """torch.split in the proportions of `sizes`: diffusers' conversion has the width of the published FLUX.1 in it."""
    rows = tensor.shape[dim]
    return _SPLIT(tensor, [size * rows // sum(sizes) for size in sizes], dim)


_SPLIT = torch.split


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_converts_the_files_of_these_tests_back(
    name: str, folders: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = states(folders[name])["transformer"]
    convert = theirs.convert_sd3_transformer_checkpoint_to_diffusers
    if name not in SD3:
        convert = theirs.convert_flux_transformer_checkpoint_to_diffusers
        monkeypatch.setattr(theirs.torch, "split", splitting)
    file = transformer_file(name, state)
    converted = convert(file)
    assert converted.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in converted.items())
    assert file == {}  # it takes what it reads


def test_diffusers_converts_the_autoencoder_back(folders: Saved) -> None:
    vae = diffusers.AutoencoderKL.from_pretrained(folders["dev"] / "vae")
    converted = theirs.convert_ldm_vae_checkpoint(
        vae_file(vae.state_dict(), levels_of(folders["dev"])), dict(vae.config)
    )
    assert converted.keys() == vae.state_dict().keys()
    assert all(torch.equal(value, converted[key]) for key, value in vae.state_dict().items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_of_published_models_follow_from_their_shapes(name: str) -> None:
    """Names and shapes alone, in the original names and in diffusers'."""
    kind, file, read = (
        (diffusers.FluxTransformer2DModel, flux_file, FluxConfig.read)
        if name.startswith("flux")
        else (diffusers.SD3Transformer2DModel, sd3_file, SD3Config.read)
    )
    with torch.device("meta"):
        network = kind(**PUBLISHED[name])
    expected = read({key: value for key, value in network.config.items() if not key.startswith("_")})
    for tensors in (network.state_dict(), file(network.state_dict())):
        lazy = {key: Lazy(tuple(value.shape), value.dtype, lambda: torch.zeros(())) for key, value in tensors.items()}
        assert (found := find_transformer(Path("x.safetensors"), lazy))
        assert found[0].kind == kind.__name__
        assert read(found[0].config) == expected
