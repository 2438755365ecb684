"""Units of the ControlNet extension, as `webuiapi` sends them, steer by the controls of the bundle."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import webuiapi
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load, load_adapter
from ldmrt.runtime import InvalidRequest, Pipeline, Request
from ldmrt.serve.http.apis.a1111.controls import controls_of
from ldmrt.serve.http.apis.a1111.reader import Reader

from ....support.pipelines import randomise
from ..conftest import Running
from .test_a1111 import SAME, SMALL, api_of, picture, pixels

__all__ = ["picture"]
ASKED: dict[str, Any] = {"prompt": "a pear", "seed": 7, "eta": 0.0, **SMALL}


@pytest.fixture(scope="module")
def steered(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The tiny model with an adapter."""
    folder = tmp_path_factory.mktemp("controls") / "sketch"
    randomise(diffusers.T2IAdapter(channels=(16, 32), downscale_factor=2, num_res_blocks=1)).save_pretrained(folder)
    return torch_pipeline(replace(load(checkpoint), controls={"adapter_sketch": load_adapter(folder)}))


@pytest.fixture(scope="module")
def api(steered: Pipeline) -> Iterator[webuiapi.WebUIApi]:
    server = Running(steered)
    yield api_of(server)
    server.stop()


def test_a_unit_is_a_control(api: webuiapi.WebUIApi, steered: Pipeline, picture: Image.Image) -> None:
    def drawn(**fields: Any) -> np.ndarray:
        unit = webuiapi.ControlNetUnit(image=picture, model="sketch [0123abcd]", **fields)
        return pixels(api.txt2img(controlnet_units=[unit], alwayson_scripts={}, **ASKED).images)

    def right(controls: dict[str, Any]) -> np.ndarray:
        fields = {"negative_prompt": "", "guidance_scale": 7.0, "seed": 7, "eta": 0.0, **SAME}
        return steered.generate(Request("a pear", controls=controls, **fields)).pixels

    np.testing.assert_array_equal(drawn(weight=0.5), right({"sketch": (picture, 0.5)}))
    np.testing.assert_array_equal(drawn(enabled=False), right({}))
    assert (drawn() != drawn(weight=0.5)).any()


def test_a_control_that_the_bundle_lacks(api: webuiapi.WebUIApi, picture: Image.Image) -> None:
    unit = webuiapi.ControlNetUnit(image=picture, model="sketsh")
    with pytest.raises(RuntimeError) as refused:
        api.txt2img(controlnet_units=[unit], alwayson_scripts={}, **ASKED)
    assert refused.value.args[0] == 422
    assert "no control 'sketsh' here, did you mean 'sketch'?" in refused.value.args[1].replace("\\'", "'")


def unit_of(**fields: Any) -> dict[str, Any]:
    image = Image.new("RGB", (16, 8))
    unit: dict[str, Any] = webuiapi.ControlNetUnit(image=image, model="sketch", resize_mode="Just Resize").to_dict()
    return unit | fields


@pytest.mark.parametrize(
    ("scripts", "says"),
    [
        ({"ADetailer": {"args": []}}, "alwayson_scripts: unsupported; expected ControlNet; found 'ADetailer'"),
        ([1], "alwayson_scripts: invalid value"),
        ({"ControlNet": []}, "ControlNet: invalid value"),
        ({"ControlNet": {"args": ["sketch"]}}, "ControlNet: invalid value"),
        ({"ControlNet": {"args": [unit_of(module="canny")]}}, "(?s)module: unsupported.*send the image that it makes"),
        ({"ControlNet": {"args": [unit_of(guidance_start=0.2)]}}, "guidance_start: unsupported; expected 0"),
        ({"ControlNet": {"args": [unit_of(guidance_end=0.5)]}}, "guidance_end: unsupported; expected 1"),
        ({"ControlNet": {"args": [unit_of(control_mode="ControlNet is more important")]}}, "control_mode: unsupported"),
        ({"ControlNet": {"args": [unit_of(mask="aGVsbG8=")]}}, "mask: unsupported"),
        ({"ControlNet": {"args": [unit_of(resize_mode="Crop and Resize")]}}, "resize_mode: unsupported"),
        ({"ControlNet": {"args": [unit_of(model="None")]}}, "no model"),
        ({"ControlNet": {"args": [unit_of(image="")]}}, "no image"),
        ({"ControlNet": {"args": [unit_of(image="/etc/passwd")]}}, "no image in base64"),
        ({"ControlNet": {"args": [unit_of(wait=1)]}}, "unknown field 'wait'"),
        ({"ControlNet": {"args": [unit_of(), unit_of()]}}, "two units of 'sketch'"),
        ({"ControlNet": {"args": [unit_of()] * 9}}, "too many controls of a request; expected at most 8; found 9"),
    ],
)
def test_what_is_refused(scripts: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        controls_of(scripts, (16, 16))


@pytest.mark.parametrize("weight", ["much", float("nan"), None, [1]])
def test_a_weight_that_is_no_number(weight: Any) -> None:
    from ldmrt.serve.http.apis.a1111.bodies import TextToImage

    scripts = {"controlnet": {"args": [unit_of(weight=weight)]}}
    with pytest.raises(InvalidRequest, match="control"):
        TextToImage(prompt="a", alwayson_scripts=scripts).request(Reader("a1111", 0, "ldmrt"))


def test_an_image_of_the_drawings_ratio_is_resized_alike_in_every_way() -> None:
    for mode in ("Resize and Fill", "Crop and Resize", 1, 2):
        unit = unit_of(resize_mode=mode)
        assert controls_of({"controlnet": {"args": [unit]}}, (32, 16))["sketch"][0].size == (16, 8)
    assert controls_of({}, (16, 16)) == controls_of(None, (16, 16)) == {}
