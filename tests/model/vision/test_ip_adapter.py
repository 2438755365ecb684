"""IP-Adapters on PyTorch draw what diffusers' pipelines draw with them."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.export.dims import Dim
from ldmrt.export.engines.profiles import rows
from ldmrt.model import load, with_ip_adapter
from ldmrt.runtime import InvalidRequest, LdmrtError, Pipeline
from ldmrt.runtime.images.clip import clip_pixels
from ldmrt.runtime.pipeline.conditioning.image_prompt import blocks_of
from ldmrt.runtime.pipeline.request.block_scales import scale_of_each

from ...support.families.compared import close
from ...support.families.ip_adapters import SIZE, adapter_state, save_image_encoder, save_ip_adapter
from ...support.pipelines import save_pipeline

PROMPTS = ["a red apple, noto style, blue background", "two pears"]
CLASSES = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
# Of each family and kind: the suffix of its file, and scales by block.
KINDS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("sd15", "base"): (".bin", {"up": {"block_1": [0.0, 1.5]}, "mid": 0.3}),
    ("sd15", "plus"): (".safetensors", {"down": 1.2}),
    ("sd15", "full-face"): (".bin", {"down": {"block_0": [0.7]}, "up": 0.4}),
    ("sdxl", "base"): (".safetensors", {"down": {"block_2": [0.7]}, "up": {"block_0": [0.0, 1.0]}}),
    ("sdxl", "plus"): (".bin", {"up": {"block_0": [1.0, 0.0]}, "mid": [0.5]}),
}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers


def picture(width: int = 70, height: int = 50, mode: str = "RGB") -> Image.Image:
    """Smooth and coloured, neither square nor of the encoder's size."""
    small = np.random.default_rng(2).integers(0, 255, (6, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path, Any]]:
    """The checkpoint of a family, an adapter's file of a kind, and diffusers' pipeline with it."""
    root = tmp_path_factory.mktemp("ip-adapters")

    @cache
    def make(family: str, kind: str) -> tuple[Path, Path, Any]:
        folder = root / family
        if not folder.exists():
            save_pipeline(family, folder)
        absent = {"safety_checker": None} if family == "sd15" else {}
        pipeline = getattr(diffusers, CLASSES[family]).from_pretrained(folder, **absent)
        pipeline.set_progress_bar_config(disable=True)
        file = save_ip_adapter(root / f"{family}-{kind}", pipeline.unet, kind, suffix=KINDS[family, kind][0])
        pipeline.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, low_cpu_mem_usage=False)
        return folder, file, pipeline

    return make


@pytest.fixture(scope="module")
def ours(saved: Any) -> Callable[[str, str], Pipeline]:
    @cache
    def make(family: str, kind: str) -> Pipeline:
        folder, file, _ = saved(family, kind)
        return torch_pipeline(with_ip_adapter(load(folder), file))

    return make


def latents_of(pipeline: Pipeline, height: int, width: int) -> NDArray[np.float32]:
    factor = pipeline.stage.space.factor
    return np.random.default_rng(3).standard_normal((2, 4, height // factor, width // factor), dtype=np.float32)


def drawn(pipeline: Pipeline, size: tuple[int, int], guidance: float, **given: Any) -> NDArray[Any]:
    return pipeline(
        PROMPTS, negative_prompt="a yellow background", num_inference_steps=4, guidance_scale=guidance, height=size[0],
        width=size[1], latents=latents_of(pipeline, *size), output_type="latent", **given,
    ).array  # fmt: skip


def expected_of(theirs: Any, ours: Pipeline, size: tuple[int, int], guidance: float, image: Any) -> NDArray[Any]:
    images: NDArray[Any] = theirs(
        PROMPTS, negative_prompt=["a yellow background"] * 2, num_inference_steps=4, guidance_scale=guidance,
        height=size[0], width=size[1], latents=torch.from_numpy(latents_of(ours, *size)), output_type="latent",
        ip_adapter_image=image,
    ).images.numpy()  # fmt: skip
    return images


SLOW = [pytest.param(*more, marks=pytest.mark.slow) for more in ((1.0, (24, 16)), (3.0, (16, 32)))]


@pytest.mark.slow(minutes=0.1)
@pytest.mark.parametrize(("guidance", "size"), [(5.0, (16, 16)), *SLOW])
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_draws_what_diffusers_draws(
    family: str, kind: str, guidance: float, size: tuple[int, int], saved: Any, ours: Any
) -> None:
    theirs, pipeline = saved(family, kind)[2], ours(family, kind)
    results = []
    for scale in (0.8, KINDS[family, kind][1]):
        theirs.set_ip_adapter_scale(scale)
        found = drawn(pipeline, size, guidance, ip_adapter_image=picture(), ip_adapter_scale=scale)
        close(found, expected_of(theirs, pipeline, size, guidance, picture()))
        results.append(found)
    results.append(drawn(pipeline, size, guidance))
    for i, one in enumerate(results):  # what the image changes is far above the tolerance
        assert all(np.abs(one - other).max() > 0.05 for other in results[:i])


@pytest.mark.parametrize("kind", ["base", "plus"])
def test_scale_0_and_no_image_draw_what_the_model_draws_without(kind: str, saved: Any, ours: Any) -> None:
    plain = drawn(torch_pipeline(load(saved("sd15", kind)[0])), (16, 16), 5.0)
    pipeline = ours("sd15", kind)
    for given in ({}, {"ip_adapter_image": picture(), "ip_adapter_scale": 0.0}):
        # a product with 0 is added to each attention: nothing but the order of a kernel may differ
        assert np.abs(drawn(pipeline, (16, 16), 5.0, **given) - plain).max() <= 1e-6 * np.abs(plain).max()


def test_an_image_for_each_prompt(ours: Any) -> None:
    pipeline, images = ours("sd15", "plus"), [picture(), picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    both = drawn(pipeline, (16, 16), 5.0, ip_adapter_image=images)
    for place, image in enumerate(images):
        alone = drawn(pipeline, (16, 16), 5.0, ip_adapter_image=image)
        np.testing.assert_allclose(both[place], alone[place], rtol=0, atol=1e-5 * np.abs(alone).max())
    parts = [part.ip_adapter_image for part in _request(images).parts(1)]
    assert [part[0].tobytes() for part in parts] == [image.tobytes() for image in images]
    with pytest.raises(InvalidRequest, match="ip_adapter_image: wrong number of images"):
        drawn(pipeline, (16, 16), 5.0, ip_adapter_image=[*images, picture()])


def _request(images: list[Image.Image]) -> Any:
    from ldmrt.runtime import Request

    return Request(PROMPTS, ip_adapter_image=images)


@pytest.mark.parametrize(
    "image",
    [picture(), picture(30, 30), picture(31, 90), picture(500, 40), picture(64, 64, "L"), picture(20, 90, "P")],
    ids=lambda image: f"{image.mode} {image.width}x{image.height}",
)
@pytest.mark.parametrize("size", [SIZE, 224])
def test_images_are_prepared_as_transformers_prepares_them(image: Image.Image, size: int) -> None:
    processor = transformers.CLIPImageProcessor(size=size, crop_size=size)
    expected = np.asarray(processor(image, return_tensors="np").pixel_values)
    found = clip_pixels("image", [image], size)
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # a rounding of float32 at most


SCALES: list[Any] = [0.0, 0.7, {"down": 0.5}, {"mid": 0.25}, {"mid": [0.25]}, {"up": {"block_1": [0.1, 0.2]}}, {},
                     {"down": {"block_0": 0.3}, "mid": 2, "up": {"block_1": [0.4]}}, {"up": {}}, -1]  # fmt: skip


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_scales_by_block_are_those_of_diffusers(scale: Any, saved: Any, ours: Any) -> None:
    theirs, blocks = saved("sd15", "base")[2], blocks_of(ours("sd15", "base").stage)
    assert blocks == ("down.0.0", "up.1.0", "up.1.1", "mid")
    theirs.set_ip_adapter_scale(9.0)  # which none may be left at
    theirs.set_ip_adapter_scale(scale)
    processors = theirs.unet.attn_processors
    expected = {
        name.replace("_blocks", "").replace(".attentions", "").split(".transformer")[0].replace("mid_block.0", "mid"):
        processor.scale[0] for name, processor in processors.items() if name.endswith("attn2.processor")
    }  # fmt: skip
    assert dict(zip(blocks, scale_of_each("scale", scale, blocks), strict=True)) == expected


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("much", "invalid ip_adapter_scale; expected -1e+06 to 1e+06; found 'much'"),
        (math.nan, "invalid ip_adapter_scale"),
        ({"dwon": 1}, "unknown block 'dwon' of ip_adapter_scale, did you mean 'down'"),
        ({"up": "all"}, "invalid ip_adapter_scale 'up'"),
        ({"up": {"block_1": [None]}}, "invalid ip_adapter_scale 'up'"),
        ({"up": {"block_0": 1.0}}, "unknown block 'block_0' of up, did you mean 'block_1'"),
        ({"up": {"block_1": [1.0] * 3}}, "wrong number of ip_adapter_scale for up.1; expected 1 or 2; found 3"),
        ({"mid": [1.0] * 2}, "wrong number of ip_adapter_scale for mid; expected 1; found 2"),
    ],
)
def test_an_invalid_scale_is_refused(scale: Any, message: str, ours: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        drawn(ours("sd15", "base"), (16, 16), 5.0, ip_adapter_image=picture(), ip_adapter_scale=scale)
    assert message in str(refused.value)


def test_a_model_without_an_adapter_takes_no_image(saved: Any) -> None:
    pipeline = torch_pipeline(load(saved("sd15", "base")[0]))
    with pytest.raises(InvalidRequest, match=r"this model takes no ip_adapter_image.*\n.*--ip-adapter FILE"):
        drawn(pipeline, (16, 16), 5.0, ip_adapter_image=picture())


def test_the_folder_of_an_adapter_is_enough(saved: Any, ours: Any, tmp_path: Path) -> None:
    folder, file, _ = saved("sd15", "base")
    by_folder = torch_pipeline(with_ip_adapter(load(folder), file.parent))
    found, expected = (
        drawn(one, (16, 16), 5.0, ip_adapter_image=picture()) for one in (by_folder, ours("sd15", "base"))
    )
    np.testing.assert_array_equal(found, expected)


def test_the_encoder_that_fits_is_found(saved: Any, tmp_path: Path) -> None:
    """As in the authors' repository, where some files of sdxl_models go with the encoder in models."""
    folder, file, theirs = saved("sd15", "base")
    save_image_encoder(tmp_path / "sdxl_models" / "image_encoder", projection=28)
    save_image_encoder(tmp_path / "models" / "image_encoder")
    for name, inner in (("own", 28), ("vit-h", 20)):
        path = tmp_path / "sdxl_models" / f"{name}.bin"
        torch.save(adapter_state(theirs.unet, "base", inner=inner) if name == "own" else torch.load(file), path)
        made = with_ip_adapter(load(folder), path).image_prompt
        assert made is not None
        assert made.config["projection_dim"] == inner


def refused_files(unet: Any) -> dict[str, tuple[Any, str]]:
    """Contents of files by name, each with the message that refuses it."""
    state = adapter_state(unet, "base", inner=20)
    projection, layers = state["image_proj"], state["ip_adapter"]
    plus = adapter_state(unet, "plus", inner=24)["image_proj"]
    weight = projection["proj.weight"]
    face = {**state, "image_proj": {"proj.0.weight": weight, "proj.2.weight": weight, "norm.weight": weight[0]}}
    face_plus = {**state, "image_proj": {"perceiver_resampler.proj_in.weight": weight}}
    narrow = {"proj.weight": weight[:80], "proj.bias": weight[:80, 0], "norm.weight": weight[0], "norm.bias": weight[0]}
    return {
        "face": (face, "is of another adapter; expected IP-Adapter, plus, full face; found IP-Adapter FaceID"),
        "face-plus": (face_plus, "found IP-Adapter FaceID Plus"),
        "half": ({"image_proj": projection}, "holds no IP-Adapter; expected image_proj and ip_adapter"),
        "other": ({**state, "more": {"x": weight}}, "holds no IP-Adapter"),
        "unknown": ({**state, "image_proj": {"x": weight}}, "holds no IP-Adapter; expected the image projection"),
        "short": ({**state, "ip_adapter": dict(list(layers.items())[2:])}, "2 tensors are missing"),
        "long": ({**state, "ip_adapter": {**layers, "99.to_k_ip.weight": weight}}, "holds 1 unexpected tensors"),
        "narrow": ({**state, "image_proj": narrow}, "does not fit this U-Net in cross_attention_dim; expected 24"),
        "damaged": ({**state, "image_proj": {**plus, "latents": plus["latents"][0]}}, "holds no IP-Adapter"),
        "infinite": ({**state, "image_proj": {**projection, "norm.bias": weight[0, :1].expand(24) * math.inf}},
                     "not finite"),
    }  # fmt: skip


def test_other_files_are_refused(saved: Any, tmp_path: Path) -> None:
    folder, _, theirs = saved("sd15", "base")
    save_image_encoder(tmp_path / "image_encoder")
    loaded = load(folder)
    for name, (content, message) in refused_files(theirs.unet).items():
        path = tmp_path / f"{name}.bin"
        torch.save(content, path)
        with pytest.raises(LdmrtError) as refused:
            with_ip_adapter(loaded, path)
        assert message in str(refused.value), name
    with pytest.raises(LdmrtError, match="no single file of weights in"):
        with_ip_adapter(loaded, tmp_path)
    assert not any("_ip" in name for name in loaded.unet.state_dict())  # it is as it was


def test_an_encoder_that_is_missing_or_does_not_fit_is_refused(saved: Any, tmp_path: Path) -> None:
    folder, _, theirs = saved("sd15", "base")
    file = save_ip_adapter(tmp_path, theirs.unet, "base", encoder=False)
    with pytest.raises(LdmrtError, match=r"no image encoder[^\n]*\n.*--image-encoder FOLDER"):
        with_ip_adapter(load(folder), file)
    other = save_image_encoder(tmp_path / "other", projection=28)
    with pytest.raises(LdmrtError, match=r"projection_dim of .* does not fit the IP-Adapter; expected 20; found 28"):
        with_ip_adapter(load(folder), file, image_encoder=other)
    config = save_image_encoder(tmp_path / "text") / "config.json"
    config.write_text(config.read_text().replace("CLIPVisionModelWithProjection", "SiglipVisionModel"))
    with pytest.raises(LdmrtError, match="image encoder is of another class"):
        with_ip_adapter(load(folder), file, image_encoder=config.parent)


@pytest.mark.parametrize(("guidance", "most"), [("on", 5), ("any", 5), ("off", 4)])
def test_an_engine_takes_an_image_for_each_prompt_and_none(guidance: str, most: int) -> None:
    for name in ("image_encoder", "image_projection"):
        assert rows(name, Dim(2, 3, 4), guidance) == Dim(1, 2, most)
