"""Triton's own server serves an exported repository: its client gets the bytes that the pipeline draws."""

import json
import pickle
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import Triton

PAGE = Path(__file__).parents[3] / "docs" / "serving" / "triton.md"
IMAGE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
MASK = np.repeat(np.array([[0, 255]], np.uint8), 8, axis=1).repeat(16, axis=0)
TYPES = {bool: "BOOL", int: "INT32", float: "FP64", str: "BYTES"}
# Requests of several samplers, sizes, numbers of images, and starts, which are sent at once
MIXED: list[dict[str, Any]] = [
    {"num_inference_steps": 4, "guidance_scale": 7.3, "seed": 2**64 - 1},
    {"num_inference_steps": 7, "scheduler": "dpmpp_2m_karras", "guidance_scale": 1.0, "num_images_per_prompt": 2},
    {"num_inference_steps": 3, "scheduler": "euler_a", "negative_prompt": "pears", "options": {"clip_skip": 1}},
    {"num_inference_steps": 5, "height": 32, "width": 16, "options": {"eta": 0.3, "guidance_rescale": 0.7}},
    {"num_inference_steps": 5, "image": IMAGE, "strength": 0.61},
    {"num_inference_steps": 4, "image": IMAGE, "mask_image": MASK, "strength": 1.0},
    {"num_inference_steps": 3, "prompt": ["a red apple", "zwei Äpfel"], "seed": [5, 9]},
]

pytestmark = pytest.mark.slow(minutes=2)


# Run in the server's Python: the bits of a product of matrices depend on the OpenBLAS that its NumPy brings.
DRAW = """
import pickle, sys
from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.opening import open_pipeline
bundle, asked, place = sys.argv[1:]
with open_pipeline(bundle, "onnxruntime") as pipeline, open(asked, "rb") as file, open(place, "wb") as out:
    results = [pipeline.generate(Request(**one)) for one in pickle.load(file)]
    pickle.dump([(each.pixels.shape, each.pixels.tobytes(), each.seeds) for each in results], out)
"""


def drawn(triton: Triton, bundle: Path, asked: list[dict[str, Any]], folder: Path) -> Any:
    """The shape, the bytes and the seeds of what the pipeline draws of each request."""
    (folder / "asked").write_bytes(pickle.dumps(asked))
    subprocess.run([triton.python, "-c", DRAW, bundle, folder / "asked", folder / "drawn"], check=True)
    return pickle.loads((folder / "drawn").read_bytes())


def tensor(name: str, value: Any) -> dict[str, Any]:
    """An input of the protocol's JSON."""
    if isinstance(value, np.ndarray):
        return {"name": name, "datatype": "UINT8", "shape": value.shape, "data": value.ravel().tolist()}
    values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
    kind = "UINT64" if name == "seed" else TYPES[type(values[0])]
    return {"name": name, "datatype": kind, "shape": [len(values)], "data": values}


def infer(triton: Triton, **inputs: Any) -> tuple[int, Any]:
    """The status and the answer of one request."""
    return triton.ask("models/ldmrt_tiny/infer", {"inputs": [tensor(*item) for item in inputs.items()]})


def arrays(answer: dict[str, Any]) -> tuple[np.ndarray, list[int]]:
    """The images and seeds of an answer."""
    images, seeds = answer["outputs"]
    assert (images["name"], images["datatype"], seeds["name"], seeds["datatype"]) == (
        *("images", "UINT8", "seeds", "UINT64"),
    )
    return np.array(images["data"], np.uint8).reshape(images["shape"]), seeds["data"]


def test_concurrent_requests_get_the_bytes_of_the_pipeline(triton: Triton, bundle: Path, tmp_path: Path) -> None:
    asked = [{"prompt": "a red apple", **inputs} for inputs in MIXED]
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(threads.map(lambda inputs: infer(triton, **inputs), asked))
    requests = [{**inputs, **inputs.get("options", {})} for inputs in asked]
    for request in requests:
        request.pop("options", None)
    for inputs, (status, answer), expected in zip(
        asked, answers, drawn(triton, bundle, requests, tmp_path), strict=True
    ):
        assert status == 200, answer
        images, seeds = arrays(answer)
        assert (images.shape, images.tobytes(), seeds) == expected, inputs


def test_the_client_of_the_page(triton: Triton, bundle: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    code = code.replace("127.0.0.1:8000", triton.url).replace("emoji64", "tiny")
    ran = subprocess.run([triton.python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    asked = {"prompt": "a red apple", "num_images_per_prompt": 2, "scheduler": "dpmpp_2m_karras", "seed": 7}
    ((_, pixels, _),) = drawn(triton, bundle, [asked], tmp_path)
    found = [np.asarray(Image.open(tmp_path / f"apple-{seed}.png")).tobytes() for seed in (7, 8)]
    assert b"".join(found) == pixels


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"num_inference_steps": 0}, "invalid num_inference_steps"),
        ({"scheduler": "dpmpp_2n"}, "scheduler"),
        ({"options": "{"}, "options is not valid JSON"),
        ({"height": 17}, "invalid height"),
    ],
)
def test_an_invalid_request_is_told_and_does_no_harm(triton: Triton, inputs: dict[str, Any], message: str) -> None:
    status, answer = infer(triton, prompt="a pear", **inputs)
    assert status == 400
    assert message in answer["error"]
    assert infer(triton, prompt="a pear", num_inference_steps=1)[0] == 200


def test_triton_itself_refuses_what_its_config_rules_out(triton: Triton) -> None:
    status, answer = infer(triton, seed=3)
    assert (status, "missing" in answer["error"] or "expected" in answer["error"]) == (400, True), answer
    status, answer = infer(triton, prompt="a pear", image=IMAGE[0])
    assert (status, "shape" in answer["error"]) == (400, True), answer


def test_plain_models_lack_a_backend_alone(triton: Triton) -> None:
    """Triton has read their configuration and files when it looks for the backend, which this server does not bring."""
    for name in ("tiny_text_encoder", "tiny_vae_decoder"):
        status, answer = triton.ask(f"repository/models/{name}/load", {})
        assert (status, "unable to find backend library for backend 'onnxruntime'" in answer["error"]) == (400, True)
    status, answer = triton.ask("models/ldmrt_tiny/config")
    assert (status, answer["max_batch_size"], answer["instance_group"][0]["kind"]) == (200, 0, "KIND_MODEL")
