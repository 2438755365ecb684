"""`--json` of the commands that look at things: one JSON value on stdout, stable keys, numbers as numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime import SCHEDULERS, Bundle
from ldmrt.runtime.bundle.engines.engine_key import Range, Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, write_engine

INSPECT = {
    "bundle": str,
    "components": list,
    "stages": list,
    "then": list,
    "size": int,
    "latent_channels": int,
    "latent_factor": int,
    "scaling_factor": float,
    "scheduler": str,
    "prediction_type": str,
    "loras": list,
    "embeddings": list,
    "words": list,
    "made_by": dict,
    "files": int,
    "certificate": dict,
}
CERTIFICATE = {"holds": bool, "issues": list, "backends": list, "figures": int, "left_out": int}
PLAN = {"component": str, "profile": list, "weights": int, "scratch": int, "io": int, "disk": int, "build": int}
ENGINE = ("name", "component", "backend", "version", "target", "precision", "flags", "profile", "bytes", "scratch")


def said(ldmrt: Any, *words: object) -> Any:
    """What a command printed, and that it was JSON alone, without numbers that JSON does not have."""
    ran = ldmrt(*words, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def check(found: dict[str, Any], kinds: dict[str, type]) -> None:
    assert {name: type(found[name]) for name in kinds} == kinds


def test_inspect(ldmrt: Any, certified: Path, bundle: Path, tmp_path: Path) -> None:
    found = said(ldmrt, "inspect", certified)
    check(found, INSPECT)
    assert set(found) == set(INSPECT)
    check(found["certificate"], CERTIFICATE)
    assert found["certificate"]["holds"]
    assert found["certificate"]["backends"] == ["onnxruntime"]
    opened = Bundle.open(certified)
    assert [one["name"] for one in found["components"]] == list(opened.components)
    unet = found["components"][1]
    assert (unet["precision"], unet["bytes"] > 1e5) == ("fp32", True)
    assert unet["inputs"][0] == {"name": "sample", "dtype": "float32", "shape": ["batch", 4, "height/2", "width/2"]}

    assert found["certificate"]["narrow"] == {}

    bare = Path(shutil.copytree(bundle, tmp_path / "bare"))
    (bare / "ldmrt.json").unlink()
    unknown = said(ldmrt, "inspect", bare)
    assert set(unknown) == set(found)
    assert not unknown["certificate"]["holds"]
    assert unknown["components"][1]["inputs"] is unknown["made_by"] is None


def test_inspect_tells_what_a_narrow_precision_keeps_in_float32(ldmrt: Any, changed: Path) -> None:
    manifest = json.loads((changed / "ldmrt.json").read_text())
    stored, name = manifest["certificate"], "openvino bf16"
    (image,) = stored["pictures"]
    stored["pictures"].append({**image, "backend": name, "psnr": 42.25, "limit": 30.0})
    stored["times"] = [{"backend": name, "what": "a row", "seconds": 0.1, "ratio": 0.5, "calls": 5}]
    stored["islands"] = {name: {"unet": {"mid_block": "error: 0.2", "conv_in": "error: 0.1"}, "vae_decoder": {"": "x"}}}
    (changed / "ldmrt.json").write_text(json.dumps(manifest))
    found = said(ldmrt, "inspect", changed)["certificate"]
    stated = {"within": True, "psnr": 42.25, "ssim": image["ssim"], "time": {"a row": 0.5}}
    assert found["narrow"] == {name: {**stated, "islands": stored["islands"][name]}}
    assert found["psnr"] is None or found["psnr"] > 60
    last = ldmrt("inspect", changed).out.splitlines()[-1]
    kept = "in float32 there: unet.mid_block, unet.conv_in, vae_decoder"
    assert last == f"{name}: the image 42.2 dB, SSIM 1.000, a row in 0.50 of fp32's time, {kept}"


def test_inspect_calls_a_failing_precision_another_model(ldmrt: Any, changed: Path) -> None:
    """The rest of the certificate still holds."""
    manifest = json.loads((changed / "ldmrt.json").read_text())
    stored, name = manifest["certificate"], "openvino int8"
    (image,) = stored["pictures"]
    stored["pictures"].append({**image, "backend": name, "psnr": 12.5, "limit": 25.0})
    stored["islands"], stored["within"] = {name: {}}, False
    (changed / "ldmrt.json").write_text(json.dumps(manifest))
    found = said(ldmrt, "inspect", changed)["certificate"]
    assert (found["holds"], found["issues"], found["narrow"][name]["within"]) == (True, [], False)
    last = ldmrt("inspect", changed).out.splitlines()[-1]
    assert last.startswith(f"{name}: not the same model, the image 12.5 dB")


def test_plan(ldmrt: Any, bundle: Path) -> None:
    found = said(ldmrt, "plan", bundle, "--batch", "1-4")
    check(found, {"bundle": str, "engines": list, "gpu": int, "disk": int, "build": int})
    assert [one["component"] for one in found["engines"]] == list(Bundle.open(bundle).components)
    for one in found["engines"]:
        check(one, PLAN)
    assert found["disk"] == sum(one["disk"] for one in found["engines"])
    assert found["engines"][1]["profile"][0]["sample"] == {
        "min": [2, 4, 8, 8],
        "opt": [2, 4, 8, 8],
        "max": [8, 4, 8, 8],
    }


def test_engines(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    assert said(ldmrt, "engines", "list", copy) == {"bundle": str(copy), "engines": []}
    shape = Range((2, 4, 8, 8), (2, 4, 8, 8), (8, 4, 8, 8))
    recipe = Recipe("unet", "0", "0", "fp16", "tensorrt-rtx", "1.7", "sm89", ({"sample": shape},), ("refit",))
    write_engine(copy / FOLDER, recipe, b"a plan", {"scratch": 12})
    (copy / FOLDER / "vae_decoder-sm89-0").mkdir()
    one, broken = said(ldmrt, "engines", "list", copy)["engines"]
    assert tuple(one) == tuple(broken) == (*ENGINE, "useless")
    assert (one["name"], one["bytes"], one["scratch"], one["flags"]) == (recipe.key, 6, 12, ["refit"])
    assert one["profile"] == [{"sample": {"min": [2, 4, 8, 8], "opt": [2, 4, 8, 8], "max": [8, 4, 8, 8]}}]
    assert one["useless"] == "unet has changed"
    assert broken["useless"] == "has no engine.json: it was never finished"
    assert {broken[name] for name in ENGINE[1:]} == {None}


def test_samplers(ldmrt: Any) -> None:
    found = said(ldmrt, "samplers")
    assert [one["name"] for one in found] == list(SCHEDULERS)
    assert {tuple(one) for one in found} == {
        ("name", "class", "order", "eta", "grids", "endings", "evaluations", "noise")
    }
    assert all(type(one["order"]) is int for one in found)
