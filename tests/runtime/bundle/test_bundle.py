"""A bundle that is not what its manifest says never opens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ldmrt.runtime
from ldmrt.runtime import Bundle, Certificate, LdmrtError
from ldmrt.runtime.bundle.manifest import MANIFEST
from ldmrt.runtime.bundle.stages import Space
from ldmrt.runtime.errors import BundleError

WEIGHTS = "unet/model.onnx_data"
TWIN = "unet/step.cuda.onnx"  # the fused step for ONNX Runtime's CUDA provider


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A damage: the manifest after `change` has been at it."""

    def damage(path: Path) -> None:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        change(content)
        (path / MANIFEST).write_text(json.dumps(content), encoding="utf-8")

    return damage


def written(name: str, content: bytes) -> Callable[[Path], int]:
    return lambda path: (path / name).write_bytes(content)


def cut_off(path: Path) -> None:
    file = path / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])


def flipped(path: Path) -> None:
    content = bytearray((path / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (path / WEIGHTS).write_bytes(content)


def names(path: str) -> Callable[[Path], None]:
    return manifest(lambda m: m["files"].update({path: {"size": 0, "sha256": ""}}))


def test_whole_bundle_opens(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.components == ("text_encoder", "unet", "vae_decoder", "vae_encoder")
    assert (opened.stage.space, opened.stage.own) == (Space(channels=4, factor=2, scaling_factor=0.18215), (16, 16))
    inputs, outputs = opened.specs("unet")
    assert [spec.name for spec in inputs] == ["sample", "timestep", "encoder_hidden_states"]
    assert str(outputs[0]) == "out_sample float32(batch, 4, height/2, width/2)"


def test_manifest_names_every_file(bundle: Path) -> None:
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(Bundle.open(bundle).manifest["files"]) == there - {MANIFEST}


def without_tokenizer(path: Path) -> None:
    shutil.rmtree(path / "tokenizer")
    manifest(lambda m: [m["files"].pop(name) for name in list(m["files"]) if name.startswith("tokenizer/")])(path)


def second_encoder(path: Path) -> None:
    """An encoder that the manifest lists, with no tokenizer of its own."""

    def add(m: dict[str, Any]) -> None:
        files, components = m["files"], m["components"]
        components["text_encoder_2"] = components["text_encoder"]
        files |= {name.replace("r/", "r_2/"): one for name, one in files.items() if name.startswith("text_encoder/")}

    shutil.copytree(path / "text_encoder", path / "text_encoder_2")
    manifest(add)(path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / WEIGHTS).unlink(), "missing file"),
        (cut_off, f"{WEIGHTS} was cut off or changed; expected 768512 bytes; found 768511"),
        (flipped, f"{WEIGHTS} was changed; expected sha256"),
        (lambda path: (path / TWIN).unlink(), "missing file"),
        (written(TWIN, b""), f"{TWIN} was cut off or changed"),
        (written("unet/config.json", b"{}"), "unet/config.json was cut off or changed"),
        (written(MANIFEST, b""), "expected a JSON object"),
        (written(MANIFEST, b'{"schema": 1'), "expected a JSON object"),
        (written(MANIFEST, b"\xff\xfe"), "expected a JSON object"),
        (written(MANIFEST, b"[1]"), "expected a JSON object; found list"),
        (manifest(lambda m: m.update(schema=4)), "another schema; expected 1 or 2 or 3; found 4"),
        (manifest(lambda m: m.pop("schema")), "another schema"),
        (names("../x"), "'../x'; expected a path inside the bundle"),
        (names("unet/../../x"), "expected a path inside the bundle"),
        (names("/etc/passwd"), "expected a path inside the bundle"),
        (names("absent"), "missing file"),
        pytest.param(written(MANIFEST, b"{}"), MANIFEST),
        pytest.param(manifest(lambda m: m.pop("files")), MANIFEST),
        pytest.param(manifest(lambda m: m.update(files=[])), MANIFEST),
        pytest.param(manifest(lambda m: m["files"].update({WEIGHTS: 3})), MANIFEST),
        pytest.param(manifest(lambda m: m["files"].update({WEIGHTS: {}})), MANIFEST),
        pytest.param(manifest(lambda m: m["files"].pop("unet/model.onnx")), MANIFEST),
        pytest.param(names("..\\x"), "expected a path inside the bundle"),
        (without_tokenizer, "missing tokenizer; expected "),
        (second_encoder, "missing tokenizer; expected "),
    ],
)  # fmt: skip
def test_damaged(copy: Path, damage: Callable[[Path], Any], words: str) -> None:
    Bundle.open(copy)
    damage(copy)
    with pytest.raises(BundleError) as raised:
        Bundle.open(copy)
    assert raised.value.where == "bundle"
    assert words in str(raised.value)


def certificate_of(listed: Any) -> Certificate:
    """A certificate with nothing measured, of the files in `listed`."""
    stored = {"figures": [], "rows": [], "pictures": [], "about": {"bundle": listed}, "origin": []}
    return Certificate.from_json(stored)


@pytest.mark.parametrize("listed", [None, 1, [1], [["unet/model.onnx", 1]], {"unet/model.onnx": None}])
def test_a_certificate_of_no_files_is_refused(listed: Any) -> None:
    with pytest.raises(LdmrtError, match="the certificate cannot be read"):
        certificate_of(listed)


@pytest.mark.parametrize("listed", [{}, [], [["unet/model.onnx", "0"]]])
def test_files_of_a_certificate_may_come_as_pairs(listed: Any) -> None:
    assert certificate_of(listed).about["bundle"] == dict(listed)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no directory .*\n  try: ldmrt export CHECKPOINT"):
        Bundle.open(tmp_path / "nothing")


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_component_is_missing(copy: Path, component: str) -> None:
    (copy / MANIFEST).unlink()
    (copy / component / "model.onnx").unlink()
    with pytest.raises(LdmrtError, match=r"missing file; expected .*model\.onnx"):
        Bundle.open(copy)


def test_check_can_be_left_out(copy: Path) -> None:
    flipped(copy)
    with pytest.raises(LdmrtError, match="was changed"):
        ldmrt.runtime.open(copy)
    pipeline = ldmrt.runtime.open(copy, check=False)
    assert pipeline("a penguin", num_inference_steps=1).pixels.shape == (1, 16, 16, 3)
    pipeline.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / TWIN).unlink(), "step: missing file"),  # the graph beside it may be wrong on a GPU
        (written(TWIN, b"not an ONNX file"), "step: cannot load"),
        (manifest(lambda m: m["files"].pop(WEIGHTS)), "expected weights in a file beside it"),
    ],
)
def test_a_graph_for_cuda_is_read_also_without_a_check(copy: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(copy)
    with pytest.raises(BundleError, match=words):
        Bundle.open(copy, check=False)


def test_directory_without_manifest_generates(bundle: Path, copy: Path) -> None:
    """As optimum's exporter writes it."""
    (copy / MANIFEST).unlink()
    assert Bundle.open(copy).manifest == {}
    pictures = []
    for path in (bundle, copy):
        pipeline = ldmrt.runtime.open(path)
        pictures.append(pipeline("a red apple", num_inference_steps=2, seed=3).pixels)
        pipeline.close()
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("unet/model.onnx", b"not an ONNX file", "unet: cannot load"),
        ("unet/model.onnx_data", b"", "unet: cannot load"),
        ("unet/config.json", b"[", "bundle: cannot read"),
        pytest.param("vae_decoder/config.json", b"{}", "block_out_channels"),
        ("scheduler/scheduler_config.json", b'{"_class_name": "SCMScheduler"}', "unknown scheduler 'SCMScheduler'"),
    ],
)
def test_unlisted_file_is_damaged(copy: Path, file: str, content: bytes, words: str) -> None:
    (copy / MANIFEST).unlink()
    (copy / file).write_bytes(content)
    with pytest.raises(LdmrtError, match=words):
        ldmrt.runtime.open(copy)("a cat", num_inference_steps=1)


def test_weights_outside_the_bundle_are_refused(copy: Path) -> None:
    """An ONNX file may name any path as its external data."""
    (copy / MANIFEST).unlink()
    inside, outside = b"model.onnx_data", b"../model.oxdata"
    graph = (copy / "unet" / "model.onnx").read_bytes()
    assert inside in graph
    (copy / "unet" / "model.onnx").write_bytes(graph.replace(inside, outside))
    shutil.copy(copy / WEIGHTS, copy / "model.oxdata")
    with pytest.raises(LdmrtError, match="unet: cannot load"):
        _ = ldmrt.runtime.open(copy).engines["unet"]


def test_other_backends_are_refused(bundle: Path) -> None:
    with pytest.raises(LdmrtError, match=r"no backend 'cuda', did you mean 'onnxruntime-cuda'\?; expected auto, "):
        ldmrt.runtime.open(bundle, "cuda")
