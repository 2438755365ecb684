"""AUTOMATIC1111's API reads prompts, LoRAs and the source of noise as `ldmrt generate` does with the same options."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi

from ldmrt.runtime import Request
from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.prompts.styles import Style
from ldmrt.serve.http.apis.a1111.reader import Reader
from ldmrt.serve.models.loras import open_with_loras

from ....support.fakes.small_loras import small_lora
from ..conftest import Running

SAME: dict[str, Any] = {
    "num_inference_steps": 4, "scheduler": "euler_a", "scheduler_settings": {"timestep_spacing": "linspace"},
    "width": 16, "height": 16, "seed": 7, "guidance_scale": 7.0, "prompt_syntax": "a1111", "negative_prompt": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def styled(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """The tiny bundle with a LoRA."""
    oil = small_lora(tmp_path_factory.mktemp("loras") / "oil.safetensors", 1)
    with open_with_loras(str(bundle), files={"oil": oil}, any_fits=False, check=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(styled: Pipeline) -> Iterator[Running]:
    running = Running(styled, styles={"still": Style("{prompt} on (red:1.2)", "grey"), "large": Style("large")})
    yield running
    running.stop()


@pytest.fixture
def api(server: Running) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", sampler="Euler a", steps=4)


def drawn(api: webuiapi.WebUIApi, prompt: str, **more: Any) -> np.ndarray:
    return np.asarray(api.txt2img(prompt=prompt, seed=7, cfg_scale=7.0, width=16, height=16, **more).image)


@pytest.mark.parametrize(
    "prompt",
    [
        "a (pear:1.4) on [red]",
        "a [pear:plum:0.5]",
        "a pear :1.2 AND a plum :0.8",
        "a pear<lora:oil:0.8>",
        "a (pear:1.2) <lora:oil:-0.5>",
    ],
)
def test_a_prompt_is_read_as_generate_reads_it(api: webuiapi.WebUIApi, styled: Pipeline, prompt: str) -> None:
    expected = styled.generate(Request(prompt, **SAME)).pixels[0]
    np.testing.assert_array_equal(drawn(api, prompt), expected)
    assert (expected != styled.generate(Request("a pear", **SAME)).pixels[0]).any()


def test_a_prompt_of_two_chunks_is_refused_where_the_network_reads_one(api: webuiapi.WebUIApi) -> None:
    with pytest.raises(RuntimeError) as refused:
        drawn(api, "a pear BREAK a plum")
    assert refused.value.args[0] == 422
    assert "this network reads prompts of one length" in refused.value.args[1]


def test_a_negative_prompt_has_weights_too(api: webuiapi.WebUIApi, styled: Pipeline) -> None:
    expected = styled.generate(Request("a pear", **{**SAME, "negative_prompt": "(red:1.5) (b"})).pixels[0]
    np.testing.assert_array_equal(drawn(api, "a pear", negative_prompt="(red:1.5) (b"), expected)


def test_styles_are_put_around_the_prompts(api: webuiapi.WebUIApi, styled: Pipeline) -> None:
    result = api.txt2img(
        prompt="a pear", seed=7, cfg_scale=7.0, width=16, height=16, styles=["still", "large"], negative_prompt="b"
    )
    request = Request("a pear on (red:1.2), large", **{**SAME, "negative_prompt": "b, grey"})
    np.testing.assert_array_equal(np.asarray(result.image), styled.generate(request).pixels[0])
    told = [result.info[name] for name in ("prompt", "negative_prompt", "styles")]
    assert told == ["a pear on (red:1.2), large", "b, grey", ["still", "large"]]
    assert [style["name"] for style in api.get_prompt_styles()] == ["still", "large"]


@pytest.mark.parametrize(("source", "noise"), [("CPU", "torch-cpu"), ("GPU", "torch-cuda"), ("NV", "a1111")])
def test_the_source_of_noise(api: webuiapi.WebUIApi, styled: Pipeline, source: str, noise: str) -> None:
    result = api.txt2img(
        prompt="a pear", seed=7, cfg_scale=7.0, width=16, height=16, override_settings={"randn_source": source}
    )
    expected = styled.generate(Request("a pear", noise=noise, **SAME)).pixels[0]
    np.testing.assert_array_equal(np.asarray(result.image), expected)
    assert (expected != styled.generate(Request("a pear", **SAME)).pixels[0]).any()
    assert result.info["extra_generation_params"] == {"RNG": source}
    assert api.get_options()["randn_source"] == "ldmrt"  # the request's own was for it alone


def test_the_loras_are_listed_and_recorded(api: webuiapi.WebUIApi, server: Running) -> None:
    (listed,) = api.get_loras()
    assert (listed["name"], listed["alias"], listed["path"]) == ("oil", "oil", "oil.safetensors")
    drawn = api.txt2img(prompt="a pear<lora:oil:0.8>", seed=7, width=16, height=16)
    image = drawn.image
    assert 'Lora hashes: "oil: ' in drawn.info["infotexts"][0]
    assert image.info["parameters"] == drawn.info["infotexts"][0]
    assert 'Lora hashes: "oil: ' in image.info["parameters"]


def test_the_own_api_takes_weights_by_name(server: Running, styled: Pipeline) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        body = {"prompt": "a pear", "seed": 7, "num_inference_steps": 2, "loras": {"oil": 0.8}}
        answer = http.post("/v1/images/generations", json=body).raise_for_status().json()
        assert answer["data"][0]["seed"] == 7
        refused = http.post("/v1/requests", json={**body, "loras": {"oyl": 1.0}})
        assert refused.status_code == 422
        assert "no LoRA 'oyl' is loaded, did you mean 'oil'?; expected oil" in refused.json()["detail"]
        for wrong in ({"oil": "much"}, {"oil": "0.5"}, {"oil": None}, ["oil"], {"oil": 1e999}):
            content = str(wrong).replace("'", '"').replace("None", "null").replace("inf", "1e999")
            text = f'{{"prompt": "a", "loras": {content}}}'
            answered = http.post("/v1/requests", content=text, headers={"Content-Type": "application/json"})
            assert answered.status_code == 422, wrong


def test_a_model_that_reads_prompts_plainly_refuses_weights() -> None:
    """FLUX.1 and Stable Diffusion 3: a weight would be words there."""
    reader = Reader("plain", 0, "ldmrt")
    assert reader.fields("a pear", "")["prompt_syntax"] == "plain"
    for prompt, says in (("a (pear:1.2)", "no weights in a prompt"), ("a <lora:oil:1>", "no networks in a prompt")):
        with pytest.raises(InvalidRequest, match=says):
            reader.fields(prompt, "")


def test_styles_that_grow_a_prompt_are_refused_before_it_is_made() -> None:
    reader = Reader("plain", 0, "ldmrt", {"double": Style("{prompt} and {prompt}", "")}, 1000)
    assert len(reader.fields("a", "", ["double"] * 4)["prompt"]) == 16 + 15 * 5
    with pytest.raises(InvalidRequest, match="too many characters of a prompt with its styles"):
        reader.fields("a", "", ["double"] * 64)
