"""Absurd manifests, and values of wrong types in them, are refused in one line."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime import Bundle, LdmrtError

from .test_bundle_paths import Refused, edit, list_anew, opened_or_refused

WRONG = [None, 3, "x", [], {}, True, [[1]], {"a": None}, 1e308, -1]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize(
    "where",
    [
        ("components", "unet"),
        ("components", "unet", "inputs"),
        ("components", "unet", "precision"),
        ("components", "unet", "graphs"),
        ("components", "unet", "graphs", "step"),
        ("files", "unet/model.onnx"),
        ("files", "unet/model.onnx", "size"),
        ("made_by", "ldmrt"),
        ("loras",),
        ("embeddings",),
        ("certificate",),
        ("schema",),
    ],
)
def test_wrong_types(copy: Path, where: tuple[str, ...], value: Any) -> None:
    """Right, where it says nothing else; else one line."""

    def change(manifest: dict[str, Any]) -> None:
        *above, last = where
        for key in above:
            manifest = manifest[key]
        manifest[last] = value

    edit(copy, change)
    with contextlib.suppress(Refused):
        opened = opened_or_refused(copy)
        assert opened.certificate_issues
        assert all(opened.specs(graph) for graph in opened.graphs)


CONFIGS = {
    "unet/config.json": ["sample_size"],
    "vae_decoder/config.json": ["block_out_channels", "latent_channels", "scaling_factor"],
    "model_index.json": ["force_zeros_for_empty_prompt", "requires_aesthetics_score"],
}


@pytest.mark.parametrize(
    "value", [*WRONG, float("nan"), float("inf"), 10**400, [1] * 1000], ids=lambda one: repr(one)[:20]
)
@pytest.mark.parametrize(("file", "key"), [(file, key) for file, keys in CONFIGS.items() for key in keys])
def test_absurd_configs(copy: Path, file: str, key: str, value: Any) -> None:
    config = json.loads((copy / file).read_text()) | {key: value}
    (copy / file).write_text(json.dumps(config))
    list_anew(copy)
    with contextlib.suppress(Refused):
        shape = opened_or_refused(copy).shape
        assert 0 < shape.size <= 2**31
        assert 0 < shape.scaling_factor < 1e9


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_absurd_paths(path: str) -> None:
    with pytest.raises((LdmrtError, OSError)) as raised:
        Bundle.open(Path(path))
    assert len(str(raised.value).splitlines()) <= 2
