"""What is built, what is reused and why, with a stand-in for TensorRT; test_trt.py has the real one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldmrt.export.engines.build import Built, Step, build, decide, listed, summary
from ldmrt.export.engines.compiler import Compiled, Watch
from ldmrt.export.engines.profiles import Wanted, recipes
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.bundle.engines.engine_key import Recipe
from ldmrt.runtime.bundle.engines.store import FOLDER, PLAN, SIDECAR
from ldmrt.runtime.bundle.engines.unused import unused_engines

from ...support.damage.bundle_faults import change_a_weight

ALL = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


@pytest.fixture
def opened(bundle: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(Path(shutil.copytree(bundle, tmp_path / "bundle")))


def wished(opened: Bundle, *, version: str = "1.7.1", sizes: str | None = None, targets: str = "sm89") -> list[Recipe]:
    wanted = Wanted.read(sizes, "1", "on", opened.stage.size)
    return recipes(opened, wanted, backend="tensorrt-rtx", version=version, targets=targets.split(","))


def stand_in(path: Path, recipe: Recipe, watch: Watch) -> Compiled:
    """An engine of a few bytes."""
    assert path.is_file()
    watch("Tactics", 0.5)
    return Compiled(bytearray(f"plan of {recipe.component}", "ascii"), 1, 2, 3, 0.25)


def made(opened: Bundle, wish: list[Recipe]) -> list[str]:
    """Build, and say which were not reused."""
    done = [one for one in build(opened, decide(opened.path, wish), stand_in) if isinstance(one, Built)]
    assert [one.recipe for one in done] == wish
    return [one.recipe.component for one in done if not one.reused]


def said(opened: Bundle, wish: list[Recipe]) -> str:
    return summary(decide(opened.path, wish))


def test_all_and_then_none(opened: Bundle) -> None:
    wish = wished(opened)
    assert said(opened, wish) == "building text_encoder, unet, vae_decoder and vae_encoder: no engine yet"
    assert made(opened, wish) == ALL
    assert said(opened, wish) == "text_encoder, unet, vae_decoder and vae_encoder reused"
    assert made(opened, wish) == []
    assert Bundle.open(opened.path).components == opened.components


def test_progress_and_what_was_measured(opened: Bundle) -> None:
    wish = wished(opened)[:1]
    step, done = build(opened, decide(opened.path, wish), stand_in)
    assert step == Step(wish[0], "Tactics", 0.5)
    assert isinstance(done, Built)
    assert done.engine.measured == {"scratch": 1, "weights": 2, "build_peak": 3, "seconds": 0.25}


def test_only_what_changed_is_built_again(opened: Bundle) -> None:
    made(opened, wished(opened))
    change_a_weight(opened.path, "unet")
    changed = Bundle.open(opened.path)
    assert said(changed, wished(changed)) == (
        "rebuilding unet: its weights changed; text_encoder, vae_decoder and vae_encoder reused"
    )
    assert made(changed, wished(changed)) == ["unet"]


def test_the_reason_is_the_nearest_engines(opened: Bundle) -> None:
    made(opened, wished(opened))
    assert said(opened, wished(opened, version="1.8")).startswith("rebuilding text_encoder, unet")
    assert "TensorRT-RTX 1.7.1 -> 1.8" in said(opened, wished(opened, version="1.8"))
    larger = said(opened, wished(opened, sizes="32x32"))
    assert larger.startswith("building unet: profile 2x4x8x8 -> 2x4x16x16; building vae_decoder: ")
    assert larger.endswith("; text_encoder reused")
    both = said(opened, wished(opened, targets="sm89,sm120"))
    assert both.startswith("building text_encoder for sm120, unet for sm120, ")
    assert both.endswith("vae_decoder for sm89 and vae_encoder for sm89 reused")


def spoiled(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda f: spoiled(f / PLAN), "engine.plan was changed"),
        (lambda f: (f / PLAN).write_bytes(b"pl"), "engine.plan was cut off or changed"),
        (lambda f: (f / PLAN).unlink(), "has no engine.plan"),
        (lambda f: (f / SIDECAR).unlink(), "has no engine.json: it was never finished"),
        (lambda f: (f / SIDECAR).write_text("{}"), "its sidecar has another schema"),
    ],
)
def test_a_damaged_engine_is_built_again(opened: Bundle, damage: Callable[[Path], Any], why: str) -> None:
    wish = wished(opened)
    made(opened, wish)
    folder = opened.path / FOLDER / wish[1].key
    damage(folder)
    assert said(opened, wish).startswith(f"rebuilding unet: the old one {why}; ")
    assert made(opened, wish) == ["unet"]
    assert {path.name for path in folder.iterdir()} == {PLAN, SIDECAR}
    assert said(opened, wish).endswith("reused")


def test_a_renamed_engine_stands_for_none(opened: Bundle) -> None:
    wish = wished(opened)
    made(opened, wish)
    engines = opened.path / FOLDER
    shutil.rmtree(engines / wish[2].key)
    (engines / wish[1].key).rename(engines / wish[2].key)
    assert made(opened, wish) == ["unet", "vae_decoder"]


def test_what_was_done_before_a_stop_stays(opened: Bundle) -> None:
    wish = wished(opened)
    loop = build(opened, decide(opened.path, wish), stand_in)
    assert sum(isinstance(next(loop), Built) for _ in range(4)) == 2  # a step and an engine, twice
    loop.close()  # type: ignore[attr-defined]
    assert made(opened, wish) == ALL[2:]


def test_leaving_stops_the_compiler(opened: Bundle) -> None:
    ended = []

    def endless(path: Path, recipe: Recipe, watch: Watch) -> Compiled:
        while watch("Tactics", 0.0):
            pass
        ended.append(recipe.component)
        raise LdmrtError(recipe.component, "the build was stopped")

    loop = build(opened, decide(opened.path, wished(opened)), endless)
    next(loop)
    loop.close()  # type: ignore[attr-defined]
    assert ended == ["text_encoder"]
    assert not (opened.path / FOLDER).exists()


def test_a_failure_is_the_callers(opened: Bundle) -> None:
    def failing(path: Path, recipe: Recipe, watch: Watch) -> Compiled:
        if recipe.component == "unet":
            raise LdmrtError("unet", "cannot build it")
        return stand_in(path, recipe, watch)

    with pytest.raises(LdmrtError, match="unet: cannot build it"):
        list(build(opened, decide(opened.path, wished(opened)), failing))
    assert made(opened, wished(opened)) == ALL[1:]


def test_what_can_go(opened: Bundle) -> None:
    wish = wished(opened)
    made(opened, wish)
    made(opened, wished(opened, version="1.6"))
    installed = {"tensorrt-rtx": "1.7.1"}
    why = dict.fromkeys(ALL, "made by 1.6, 1.7.1 is installed")
    old = {one.key: why[one.component] for one in wished(opened, version="1.6")}
    assert {folder.name: reason for folder, reason in unused_engines(opened, installed)} == old
    assert unused_engines(opened, {}) == []  # of a backend that is not here nothing is known
    spoiled(opened.path / FOLDER / wish[0].key / PLAN)
    (opened.path / FOLDER / wish[1].key / SIDECAR).unlink()
    change_a_weight(opened.path, "vae_decoder")
    shutil.rmtree(opened.path / "vae_encoder")
    found = {folder.name: reason for folder, reason in unused_engines(Bundle.open(opened.path, check=False), installed)}
    assert [found[one.key] for one in wish] == [
        "engine.plan was changed",
        "has no engine.json: it was never finished",
        "vae_decoder has changed",
        "the bundle has no vae_encoder",
    ]


@pytest.mark.parametrize(("names", "text"), [("a", "a"), ("a b", "a and b"), ("a b c", "a, b and c")])
def test_listed(names: str, text: str) -> None:
    assert listed(names.split()) == text
