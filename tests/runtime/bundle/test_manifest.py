"""Absurd manifests, and values of wrong types in them, are refused in one line."""

import contextlib
import json
from collections.abc import Callable
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
        ("stages",),
        ("stages", 0),
        *(("stages", 0, key) for key in ("name", "space", "own", "reads", "guide", "shortens", "depth")),
        *(("stages", 0, "space", key) for key in ("channels", "factor", "scaling_factor")),
        ("stages", 0, "reads", "sample"),
        ("stages", 0, "reads", "timestep", 0),
        ("stages", 0, "reads", "timestep", 0, "from"),
        ("stages", 0, "guide", "rows"),
        ("stages", 0, "guide", "rows", 1, "prompt"),
        ("stages", 0, "guide", "scales"),
    ],
)
def test_wrong_types(copy: Path, where: tuple[str | int, ...], value: Any) -> None:
    """Right, where it says nothing else; else one line."""

    def change(manifest: Any) -> None:
        *above, last = where
        for key in above:
            manifest = manifest[key]
        manifest[last] = value

    edit(copy, change)
    with contextlib.suppress(Refused):
        opened = opened_or_refused(copy)
        assert opened.certificate_issues
        assert all(opened.specs(graph) for graph in opened.graphs)


def without_stages(manifest: dict[str, Any]) -> None:
    """Make a manifest of the first schema, whose stage is read from the configs."""
    del manifest["stages"]
    manifest["schema"] = 1


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
    edit(copy, without_stages)
    with contextlib.suppress(Refused):
        stage = opened_or_refused(copy).stage
        assert 0 < stage.size <= 2**31
        assert 0 < stage.space.scaling_factor < 1e9


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_absurd_paths(path: str) -> None:
    with pytest.raises((LdmrtError, OSError)) as raised:
        Bundle.open(Path(path))
    assert len(str(raised.value).splitlines()) <= 2


def test_a_manifest_of_the_first_schema_has_the_same_stage(copy: Path) -> None:
    stages = Bundle.open(copy).stages
    edit(copy, without_stages)
    assert Bundle.open(copy).stages == stages


def first_stage(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: change(manifest["stages"][0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("stages"), "has no stages; expected a list"),
        (lambda m: m["stages"].append(m["stages"][0]), "unsupported number of stages; expected 1; found 2"),
        (
            first_stage(lambda s: s["reads"].pop("timestep")),
            "damaged at timestep of stage 0; expected the timestep",
        ),
        (first_stage(lambda s: s["reads"].update(odd=[{"from": "prompt"}])), "stage base gives unknown odd"),
        (first_stage(lambda s: s["reads"].update(timestep=[{"from": "moon"}])), "found 'moon'"),
        (first_stage(lambda s: s["reads"]["timestep"][0].update(zeros=True)), "settings of timestep: none"),
        (first_stage(lambda s: s["guide"]["scales"].append("guidance_scale")), "a scale for each row but the first"),
        (first_stage(lambda s: s.update(more=1)), "damaged at stage 0; expected a JSON object with name"),
        (first_stage(lambda s: s.update(depth=2)), "damaged at depth of stage 0; expected 0 or 1 or 3; found 2"),
        (first_stage(lambda s: s.update(own=[8])), "damaged at own of stage 0; expected height and width"),
        (first_stage(lambda s: s["space"].update(channels=3)), "gives sample another number of channels; expected 4"),
        (first_stage(lambda s: s["reads"]["sample"].append({"from": "state"})), "expected the state, then each once"),
        (first_stage(lambda s: s["reads"]["sample"].append({"from": "prompt"})), "expected each once: mask"),
        (first_stage(lambda s: s["reads"]["sample"].append({"from": "mask"})), "expected mask and masked_image"),
        (first_stage(lambda s: s["reads"].update(timestep=[{"from": "state"}])), "expected the timestep"),
        (first_stage(lambda s: s["reads"]["encoder_hidden_states"].append({"from": "prompt"})), "one source for each"),
        (first_stage(lambda s: s["reads"].update(encoder_hidden_states=[{"from": "mask"}])), "one of prompt"),
        (first_stage(lambda s: s["reads"].update(labels=[{"from": "class"}])), "settings of class: count"),
        (
            first_stage(lambda s: s["reads"].update(a=[{"from": "instructed_prompt", "tokens": 9, "instruction": ""}])),
            "settings of instructed_prompt: tokens, instruction",
        ),
        (
            first_stage(lambda s: s["reads"].update(labels=[{"from": "noise_level", "most": 3}])),
            "noised_image or enlarged_image with",
        ),
        (first_stage(lambda s: s["guide"]["rows"][0].update(blank=["prompt"])), "blank of stage 0; expected nothing"),
        (first_stage(lambda s: s["guide"]["rows"][0].update(blank=["class"])), "blank of stage 0; expected nothing"),
        (
            first_stage(lambda s: s["reads"].update(labels=[{"from": "class", "count": 1, "null": True}])),
            "a class beside the one that is none",
        ),
        (
            first_stage(lambda s: s["reads"].update(labels=[{"from": "class", "count": 2, "null": 1}])),
            "settings of class: count, null",
        ),
        (lambda m: m.update(schema=2.0), "another schema; expected 1 or 2 or 3; found 2.0"),
    ],
)
def test_stages_that_cannot_be_run(copy: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    edit(copy, change)
    with pytest.raises(LdmrtError, match=words):
        Bundle.open(copy)
