"""Engines on disk: what they are made of is their name, and what does not fit is refused before a plan is read."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import Range, Recipe
from ldmrt.runtime.bundle.engines.store import PLAN, SIDECAR, EngineFile, engines, find_engine, model_digests, runs_on

from ...support.made_engines import SHAPES, VERSION, put, recipe, static


def asked(opened: Bundle, **changes: Any) -> EngineFile:
    return find_engine(
        opened,
        "unet",
        **{**{"backend": "tensorrt-rtx", "version": VERSION, "gpu": "sm89", "shapes": SHAPES}, **changes},
    )


CHANGES: dict[str, Any] = {
    "component": "vae_decoder",
    "graph": "0",
    "weights": "0",
    "precision": "fp16",
    "backend": "tensorrt",
    "version": "1.7.2",
    "target": "sm120",
    "profile": (static({"sample": (1, 4, 8, 8)}),),
    "flags": (),
}


def test_the_key_follows_from_everything(opened: Bundle) -> None:
    made = recipe(opened)
    assert set(CHANGES) == set(Recipe.__dataclass_fields__)
    keys = {replace(made, **{name: value}).key for name, value in CHANGES.items()}
    assert len({made.key, *keys}) == len(CHANGES) + 1
    assert made.key.startswith("unet-sm89-")
    assert replace(made).key == made.key


def test_round_trip(opened: Bundle) -> None:
    made = put(opened, recipe(opened))
    (found,) = engines(opened.path)
    assert found == made
    assert isinstance(found, EngineFile)
    assert found.recipe == recipe(opened)
    assert found.read(opened) == b"a plan"
    assert found.measured == {"scratch": 5}
    assert {path.name for path in made.folder.iterdir()} == {PLAN, SIDECAR}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("graph", "its graph changed"),
        ("weights", "its weights changed"),
        ("precision", "precision fp32 -> fp16"),
        ("backend", "TensorRT-RTX -> TensorRT 1.7.1.116"),
        ("version", "TensorRT-RTX 1.7.1.116 -> 1.7.2"),
        ("target", "target sm89 -> sm120"),
        ("profile", "profile 2x4x8x8 -> 1x4x8x8"),
        ("flags", "flags a flag -> none"),
    ],
)
def test_what_changed_is_said(opened: Bundle, name: str, said: str) -> None:
    assert recipe(opened).changes(recipe(opened, **{name: CHANGES[name]})) == [said]


def test_nothing_changed(opened: Bundle) -> None:
    assert recipe(opened).changes(recipe(opened)) == []


def test_find(opened: Bundle) -> None:
    made = put(opened, recipe(opened))
    assert asked(opened) == made
    assert made.bucket(SHAPES) == 0


def test_the_narrowest_and_the_gpus_own_come_first(opened: Bundle) -> None:
    most = {name: (shape[0] * 4, *shape[1:]) for name, shape in SHAPES.items()}
    wide = {name: Range(shape, shape, most[name]) for name, shape in SHAPES.items()}
    put(opened, recipe(opened, profile=(wide,)))
    put(opened, recipe(opened, target="portable"))
    narrow = put(opened, recipe(opened))
    assert asked(opened) == narrow
    shutil.rmtree(narrow.folder)
    assert asked(opened).recipe.profile == (wide,)
    assert asked(opened, gpu="sm120").recipe.target == "portable"


def test_the_bucket_that_holds_a_shape(opened: Bundle) -> None:
    larger = {**SHAPES, "sample": (2, 4, 16, 16)}
    made = put(opened, recipe(opened, profile=(static(SHAPES), static(larger))))
    assert made.bucket(larger) == 1
    assert asked(opened, shapes=larger) == made
    assert made.bucket({**SHAPES, "sample": (2, 4, 12, 12)}) is None
    assert made.bucket({"sample": SHAPES["sample"]}) is None


@pytest.mark.parametrize(
    ("changes", "wish", "message"),
    [
        ({"version": "1.6.0"}, {}, "was made by TensorRT-RTX 1.6.0, not 1.7.1.116"),
        ({"target": "sm120"}, {}, "was made for sm120, not for sm89"),
        ({"target": "portable"}, {"gpu": "sm75"}, "was made for portable, not for sm75"),
        ({"target": "portable"}, {"gpu": "sm90"}, "was made for portable, not for sm90"),
        ({"graph": "0"}, {}, "was made of another graph"),
        ({"weights": "0"}, {}, "was made of other weights"),
        ({"precision": "fp16"}, {}, "was made in fp16"),
        ({}, {"shapes": {**SHAPES, "sample": (2, 4, 16, 8)}}, "takes 2x4x8x8, not 2x4x16x8"),
        ({"backend": "tensorrt"}, {}, "no engine for TensorRT-RTX 1.7.1.116 on sm89"),
    ],
)
def test_what_does_not_fit_is_refused(
    opened: Bundle, changes: Any, wish: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(opened, recipe(opened, **changes))
    never_read(monkeypatch)
    with pytest.raises(LdmrtError, match=message) as refused:
        asked(opened, **wish)
    other = wish.get("gpu") == "sm90"  # which TensorRT-RTX builds nothing for
    assert_one_line_and_a_command(refused.value, opened, "tensorrt" if other else "tensorrt-rtx")


def never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, whoever opens a plan fails."""

    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        assert path.name != PLAN, f"{path} was read"
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)


def assert_one_line_and_a_command(error: LdmrtError, opened: Bundle, backend: str = "tensorrt-rtx") -> None:
    problem, hint = str(error).splitlines()
    assert problem.startswith("unet: ")
    assert hint.startswith(f"  try: ldmrt build {opened.path} --backend {backend} --target sm")


def test_the_command_that_mends_names_size_and_batch(opened: Bundle) -> None:
    shapes = {"sample": (4, 4, 8, 16), "timestep": (4,)}
    with pytest.raises(LdmrtError, match=r"--target sm89 --sizes 32x16 --batch 2$"):
        asked(opened, shapes=shapes)
    with pytest.raises(LdmrtError, match=r"--sizes 16x16 --batch 1 --guidance off$"):
        asked(opened, shapes={"sample": (1, 4, 8, 8)})


def test_a_plan_of_the_right_size_with_other_bytes_is_not_handed_out(opened: Bundle) -> None:
    made = put(opened, recipe(opened))
    assert not made.damaged
    (made.folder / PLAN).write_bytes(b"A plan")
    assert asked(opened) == made  # from outside it looks right
    assert made.damaged
    with pytest.raises(LdmrtError, match=r"engine\.plan was changed") as refused:
        made.read(opened)
    mended = f"ldmrt build {opened.path} --backend tensorrt-rtx --target sm89 --sizes 16x16 --batch 1"
    assert str(refused.value).splitlines()[1] == f"  try: {mended}"


def test_the_fault_of_the_nearest_is_said(opened: Bundle) -> None:
    put(opened, recipe(opened, target="sm120"))
    put(opened, recipe(opened, weights="0"))
    with pytest.raises(LdmrtError, match="was made of other weights"):
        asked(opened)


def test_digests_are_the_manifests(opened: Bundle) -> None:
    files = opened.manifest["files"]
    assert model_digests(opened, "unet")[0] == files["unet/model.onnx"]["sha256"]
    bare = replace(opened, manifest={})
    assert model_digests(bare, "unet") == model_digests(opened, "unet")
    with (opened.path / "unet" / "model.onnx_data").open("ab") as file:
        file.write(b"1")
    graph, weights = model_digests(bare, "unet")
    assert graph == model_digests(opened, "unet")[0]
    assert weights != model_digests(opened, "unet")[1]


@pytest.mark.parametrize(
    ("backend", "target", "gpus"),
    [
        ("tensorrt-rtx", "sm89", {"sm89"}),
        ("tensorrt-rtx", "portable", {"sm80", "sm86", "sm89", "sm120", "sm121"}),
        ("tensorrt", "sm90", {"sm90"}),
        ("tensorrt", "portable", {"sm80", "sm86", "sm89", "sm90", "sm120", "sm121"}),
    ],
)
def test_runs_on(opened: Bundle, backend: str, target: str, gpus: set[str]) -> None:
    made = recipe(opened, backend=backend, target=target)
    every = ("sm75", "sm80", "sm86", "sm89", "sm90", "sm120", "sm121")
    assert {gpu for gpu in every if runs_on(made, gpu)} == gpus


def test_engines_beside_a_bundle_do_not_disturb_it(opened: Bundle) -> None:
    put(opened, recipe(opened))
    again = Bundle.open(opened.path)
    assert again.components == opened.components


def test_names_of_backends_and_gpus_need_no_numpy() -> None:
    """The help of commands reads them."""
    program = "import sys, ldmrt.runtime.bundle.engines.targets; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
