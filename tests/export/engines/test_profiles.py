"""What a user says about sizes and batches, and the shapes that come of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldmrt.export.dims import Dim
from ldmrt.export.engines.profiles import Wanted, profile, recipes, rows
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.bundle.engines.build_command import build_command
from ldmrt.runtime.bundle.engines.engine_key import Range
from ldmrt.runtime.bundle.graphs import STEP, STEPS
from ldmrt.runtime.tensors import TensorSpec, shape_of

UNET = (
    TensorSpec("sample", "float16", ("batch", 4, "height/8", "width/8")),
    TensorSpec("timestep", "float32", ("timesteps",)),
    TensorSpec("encoder_hidden_states", "float16", ("batch", 77, 768)),
)
TEXT = (TensorSpec("input_ids", "int64", ("batch", 77)),)
VAE = (TensorSpec("latent_sample", "float16", ("batch", 4, "height/8", "width/8")),)
ADAPTER = (TensorSpec("adapter_cond", "float16", ("batch", 3, "height/64", "width/64")),)


def said(sizes: str | None = None, batch: str = "1", guidance: str = "on", steps: int = STEPS) -> Wanted:
    return Wanted.read(sizes, batch, guidance, 512, steps)


def exactly(*shape: int) -> Range:
    return Range(shape, shape, shape)


def test_static_buckets() -> None:
    first, second = profile("unet", UNET, said("512x512,768x512"))
    assert first["sample"] == exactly(2, 4, 64, 64)  # guidance doubles the rows
    assert second["sample"] == exactly(2, 4, 64, 96)  # 768 wide
    assert first["timestep"] == exactly(2)
    assert first["encoder_hidden_states"] == exactly(2, 77, 768)


def test_a_range() -> None:
    (bucket,) = profile("unet", UNET, said("256-1024x512-768", "1-4"))
    assert bucket["sample"] == Range((2, 4, 64, 32), (2, 4, 64, 64), (8, 4, 96, 128))  # best at the model's own size
    assert bucket["timestep"] == Range((2,), (2,), (8,))


def test_batches_are_buckets_too() -> None:
    found = [bucket["sample"] for bucket in profile("unet", UNET, said("512x512,768x768", "1,4"))]
    assert found == [exactly(2, 4, 64, 64), exactly(8, 4, 64, 64), exactly(2, 4, 96, 96), exactly(8, 4, 96, 96)]


@pytest.mark.parametrize(
    ("guidance", "batch", "least", "most"),
    [("on", "1", 2, 2), ("on", "2-4", 4, 8), ("off", "1", 1, 1), ("off", "2-4", 2, 4), ("any", "1", 1, 2),
     ("any", "2-4", 2, 8)],
)  # fmt: skip
def test_guidance_doubles_the_unets_rows(guidance: str, batch: str, least: int, most: int) -> None:
    (bucket,) = profile("unet", UNET, said(None, batch, guidance))
    assert (bucket["sample"].min[0], bucket["sample"].max[0]) == (least, most)
    assert profile("controlnet_canny", UNET, said(None, batch, guidance)) == (bucket,)


@pytest.mark.parametrize(
    ("guidance", "batch", "most"), [("on", "4", 8), ("off", "4", 4), ("on", "1", 2), ("off", "1", 1)]
)
def test_equal_prompts_are_encoded_once(guidance: str, batch: str, most: int) -> None:
    (bucket,) = profile("text_encoder", TEXT, said("512x512,768x512", batch, guidance))
    assert (bucket["input_ids"].min, bucket["input_ids"].max) == ((1, 77), (most, 77))


@pytest.mark.parametrize("component", ["vae_decoder", "vae_encoder"])
def test_the_vae_runs_a_picture_at_a_time(component: str) -> None:
    (bucket,) = profile(component, VAE, said("512x512", "1-4"))
    assert bucket["latent_sample"] == exactly(1, 4, 64, 64)


@pytest.mark.parametrize("component", ["unet", "text_encoder", "text_encoder_2", "vae_decoder", "adapter_sketch"])
@pytest.mark.parametrize("guidance", ["on", "off", "any"])
@pytest.mark.parametrize("batch", [Dim(1, 1, 1), Dim(1, 1, 4), Dim(3, 3, 3)])
def test_rows_are_in_order(component: str, guidance: str, batch: Dim) -> None:
    found = rows(component, batch, guidance)
    assert 1 <= found.min <= found.opt <= found.max


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sizes": "512"}, "--sizes: cannot read it"),
        ({"sizes": "512x512;768x768"}, "--sizes: cannot read it"),
        ({"sizes": "1024-512x512"}, "--sizes: invalid width; expected 1 to 2048, the least first; found 1024-512"),
        ({"sizes": "512x4096"}, "--sizes: invalid height"),
        ({"sizes": ""}, None),
        ({"batch": "0"}, "--batch: invalid batch"),
        ({"batch": "4-1"}, "--batch: invalid batch"),
        ({"batch": "65"}, "--batch: invalid batch"),
        ({"batch": "many"}, "--batch: cannot read it"),
        ({"steps": 0}, "--steps: invalid steps; expected 1 to 1000"),
        ({"steps": 1001}, "--steps: invalid steps"),
    ],
)
def test_words_that_mean_nothing(words: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert said(**words) == said()
        return
    with pytest.raises(LdmrtError, match=message):
        said(**words)


@pytest.mark.parametrize(
    ("sizes", "specs"), [("516x512", UNET), ("512x520", ADAPTER), ("8x8", UNET), ("512x64", ADAPTER)]
)
def test_sizes_that_the_network_cannot_make(sizes: str, specs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(LdmrtError, match=r"unet: invalid (width|height); expected a multiple of"):
        profile("unet", specs, said(sizes))


def test_recipes_of_a_bundle(bundle: Path) -> None:
    opened = Bundle.open(bundle, check=False)
    wanted = Wanted.read(None, "1", "on", opened.stage.size)
    made = recipes(opened, wanted, backend="tensorrt-rtx", version="1", targets=["sm89", "portable"], flags=["refit"])
    assert [(one.component, one.target) for one in made] == [
        (name, target) for name in opened.components for target in ("sm89", "portable")
    ]
    for one in made:
        files = opened.manifest["files"]
        assert one.graph == files[f"{one.component}/model.onnx"]["sha256"]
        assert set(one.profile[0]) == {spec.name for spec in opened.specs(one.component)[0]}
        assert one.flags[-1] == "refit"


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder", "vae_encoder", STEP])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("guided", [False, True])
def test_the_command_that_mends_does(bundle: Path, component: str, batch: int, guided: bool) -> None:
    """What a refusal of an engine tells the user to build holds the shapes that were refused."""
    opened = Bundle.open(bundle, check=False)
    rows = 1 if component.startswith("vae") else batch
    sizes = {"batch": rows, "timesteps": rows, "width": 32, "height": 48}
    sizes |= {"calls": rows * (1 + guided), "rows": 60 * batch, "saved": 3, "terms": 5, "draws": 60 * batch}
    shapes = {spec.name: shape_of(spec, sizes) for spec in opened.specs(component)[0]}
    words = build_command(opened, component, "tensorrt-rtx", "sm89", shapes).split()
    assert ("--folded" in words) == (component == STEP)
    words = [word for word in words if word != "--folded"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    steps = int(options.get("--steps", STEPS))
    guidance = options.get("--guidance", "on")
    wanted = Wanted.read(options.get("--sizes"), options.get("--batch", "1"), guidance, 16, steps)
    target, backend = options["--target"], options["--backend"]
    (made,) = recipes(opened, wanted, backend=backend, version="1", targets=[target], graphs=[component])
    (bucket,) = made.profile
    assert all(bucket[name].holds(shape) for name, shape in shapes.items())


def test_the_folded_step(bundle: Path) -> None:
    """Pictures, calls of the U-Net for them, and room for every sampler of so many steps."""
    opened = Bundle.open(bundle, check=False)
    wanted = Wanted.read("32x32", "1-4", "any", 16, 10)
    (made,) = recipes(opened, wanted, backend="tensorrt-rtx", version="1", targets=["sm89"], graphs=[STEP])
    (bucket,) = made.profile
    assert bucket["state"] == Range((1, 1, 4, 16, 16), (1, 6, 4, 16, 16), (4, 6, 4, 16, 16))
    assert bucket["table"] == Range((1, 1, 1, 3), (1, 28, 6, 8), (4, 28, 6, 8))
    assert bucket["noise"] == Range((1, 1, 4, 16, 16), (1, 1, 4, 16, 16), (4, 28, 4, 16, 16))
    assert bucket["weights"] == Range((1, 1), (1, 2), (4, 8))
    assert bucket["encoder_hidden_states"] == Range((1, 16, 24), (2, 16, 24), (8, 16, 24))
    other = recipes(opened, replace(wanted, steps=20), backend="tensorrt-rtx", version="1", targets=["sm89"],
                    graphs=[STEP])[0]  # fmt: skip
    assert made.changes(other) == ["profile 1-4x1-28x4x16x16 -> 1-4x1-48x4x16x16"]  # of the input that changed


def test_a_directory_without_a_manifest(bundle: Path) -> None:
    bare = Bundle(bundle, {}, {}, Bundle.open(bundle, check=False).shape)
    with pytest.raises(LdmrtError, match="has no manifest"):
        recipes(bare, said(), backend="tensorrt-rtx", version="1", targets=["sm89"])
