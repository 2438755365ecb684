"""`ldmrt engines refit`: a LoRA into an engine that is there, through the command line, over the TensorRT of straw."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ldmrt.runtime import Bundle
from ldmrt.runtime.bundle.engines.store import FOLDER, EngineFile, engines, write_engine

from ...support.damage.bundle_faults import truthful
from ...support.fakes import refitter
from ...support.fakes.builder import altered
from ...support.fakes.cuda import FakeCuda
from ..conftest import command

pytestmark = [
    pytest.mark.slow,  # an export with a LoRA that no other test shares
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning"),  # of Polygraphy
]
BUILD = ("--backend", "tensorrt", "--no-verify")
# Modules of the tiny checkpoint, and how wide is what goes in and out. Weights of a kilobyte stay in the graph: larger.
LORA = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (24, 16),
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2": (64, 16),
}


@pytest.fixture(scope="module")
def merged(certified: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certified bundle exported again with a LoRA, its own certificate in it. Do not write into it."""
    folder = tmp_path_factory.mktemp("merged")
    random = np.random.default_rng(0)
    factors = {}
    for module, (width, made) in LORA.items():
        factors[f"{module}.lora_A.weight"] = random.normal(size=(4, width)).astype(np.float32)
        factors[f"{module}.lora_B.weight"] = random.normal(size=(made, 4)).astype(np.float32)
    save_file(factors, folder / "lora.safetensors")
    copy = Path(shutil.copytree(certified, folder / "bundle"))
    assert command("export", checkpoint, copy, "--lora", f"{folder / 'lora.safetensors'}:0.8") == 0
    return copy


@pytest.fixture
def lora(merged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged, tmp_path / "lora"))


def of(bundle: Path) -> dict[str, EngineFile]:
    """Its engines by component, whole."""
    found = {one.recipe.component: one for one in engines(bundle) if isinstance(one, EngineFile)}
    assert not any(one.damaged for one in found.values())
    return found


def files(bundle: Path) -> dict[str, bytes]:
    return {path.name + path.parent.name: path.read_bytes() for path in sorted(bundle.rglob("*")) if path.is_file()}


def test_there_and_back(ldmrt: Any, changed: Path, lora: Path, gpu: FakeCuda) -> None:
    assert ldmrt("build", changed, *BUILD, "--refit").code == 0
    first, before = of(changed), files(changed)
    ran = ldmrt("engines", "refit", lora, "--from", changed)
    assert (ran.code, ran.out) == (0, f"{lora}\n"), ran.err
    assert (ran.err.count("weights replaced, sha256 "), ran.err.count("of the same weights, copied")) == (1, 3)
    assert "FAILED" not in ran.err
    assert ran.err.count("│ tensorrt ") == 8  # the LoRA's certificate holds for what the engines now compute
    assert files(changed) == before

    second = of(lora)
    for name, one in second.items():
        new = name == "unet"
        assert (one.measured["weights_sha256"] != first[name].measured["weights_sha256"]) is new
        assert one.measured.get("refitted_from") == (first[name].folder.name if new else None)
        assert one.measured["scratch"] == first[name].measured["scratch"]
    # what a build there would have made is what is there
    assert "text_encoder, unet, vae_decoder and vae_encoder reused" in ldmrt("build", lora, *BUILD, "--refit").err
    ran = ldmrt("engines", "refit", lora, "--from", changed)
    assert (ran.code, ran.err.count(": reused\n"), len(ran.err.splitlines())) == (0, 4, 4)

    shutil.rmtree(changed / FOLDER)
    ran = ldmrt("engines", "refit", changed, "--from", lora)
    assert ran.code == 0, ran.err
    again = of(changed)
    assert {name: one.recipe for name, one in again.items()} == {name: one.recipe for name, one in first.items()}
    for name, one in again.items():
        assert one.measured["weights_sha256"] == first[name].measured["weights_sha256"]
        plans = one.read(Bundle.open(changed)), before[f"engine.plan{one.folder.name}"]
        assert json.loads(plans[0])["weights"] == json.loads(plans[1])["weights"]
    assert gpu.leftovers == []


def test_a_bundle_that_was_exported_anew(ldmrt: Any, changed: Path, lora: Path, gpu: FakeCuda) -> None:
    """Its old engines are still in it, and need no other bundle."""
    assert ldmrt("build", changed, *BUILD, "--refit", "--components", "unet,vae_decoder").code == 0
    shutil.copytree(changed / FOLDER, lora / FOLDER)
    ran = ldmrt("engines", "refit", lora, "--no-verify")
    assert ran.code == 0, ran.err
    assert (ran.err.count("weights replaced"), ran.err.count("reused")) == (1, 1)
    ran = ldmrt("engines", "prune", lora)
    assert ran.out.count("unet has changed") == len(ran.out.splitlines()) == 1


def test_a_refit_that_did_not_take_is_found(
    ldmrt: Any, changed: Path, lora: Path, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a library may answer that all is well: the certificate knows better."""
    assert ldmrt("build", changed, *BUILD, "--refit").code == 0
    monkeypatch.setattr(refitter.Refitter, "refit_cuda_engine", lambda self: True)
    ran = ldmrt("engines", "refit", lora, "--from", changed)
    assert ran.code == 1
    assert "it began with: unet, guidance or conditioning" in ran.err


@pytest.mark.parametrize("fault", ["backend", "component", "none", "flag", "graph"])
def test_refused(ldmrt: Any, changed: Path, lora: Path, gpu: FakeCuda, fault: str) -> None:
    """Before anything is done."""
    words = ["--from", changed]
    if fault != "none":
        refit = () if fault == "flag" else ("--refit",)
        assert ldmrt("build", changed, *BUILD, *refit, "--components", "text_encoder,unet").code == 0
    expected = {
        "backend": ("--backend: TensorRT-RTX compiles engines with replaceable weights by", "ldmrt export CHECKPOINT"),
        "component": ("--components: no component 'vea', did you mean 'vae_decoder'?; expected", ""),
        "none": (
            f"refit: {changed} has no engine of TensorRT 1.2.3 for sm90",
            f"ldmrt build {changed} --backend tensorrt --refit",
        ),
        "flag": (
            "was built without --refit",
            f"ldmrt build {changed} --backend tensorrt --target sm90 --sizes 16x16 --batch 1 --refit",
        ),
        "graph": (
            f"unet: {lora} has another model.onnx than engine unet-sm90-",
            f"ldmrt build {lora} --backend tensorrt --target sm90 --sizes 16x16 --batch 1",
        ),
    }  # fmt: skip
    if fault == "backend":
        words += ["--backend", "tensorrt-rtx"]
    if fault == "component":
        words += ["--components", "vea"]
    if fault == "graph":
        import onnx

        model = onnx.load(lora / "unet" / "model.onnx", load_external_data=False)
        model.doc_string = "another"
        onnx.save(model, lora / "unet" / "model.onnx")
        truthful(lora)
    ran = ldmrt("engines", "refit", lora, *words)
    problem, hint = expected[fault]
    assert problem in ran.error
    assert f"try: {hint}" in ran.err if hint else "try:" not in ran.err
    assert not (lora / FOLDER).exists()


@pytest.mark.parametrize("fault", ["a weight without a name", "a layer in part", "one way", "nothing to refit"])
def test_what_the_library_refuses(
    ldmrt: Any, changed: Path, lora: Path, gpu: FakeCuda, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ldmrt("build", changed, *BUILD, "--refit", "--components", "unet").code == 0
    (one,) = of(changed).values()
    plan = json.loads(one.read(Bundle.open(changed)))
    said = "Only successfully refitted"
    if fault == "a weight without a name":
        plan["weights"]["made up"] = plan["weights"]["conv_in.bias"]
    elif fault == "a layer in part":
        said = "1 weights are missing, such as conv_in.bias"
        real = refitter.Refitter.set_named_weights
        monkeypatch.setattr(
            refitter.Refitter, "set_named_weights",
            lambda self, name, value: True if name == "conv_in.bias" else real(self, name, value),
        )  # fmt: skip
    elif fault == "one way":
        said = "it is not refittable"
        monkeypatch.setattr("ldmrt.export.engines.refit.KEEPS", "UNKNOWN")  # as before TensorRT 10.14
    else:
        plan["refittable"], said = False, "it is not refittable"
    write_engine(changed / FOLDER, one.recipe, altered(b"{}", **plan), one.measured)
    ran = ldmrt("engines", "refit", lora, "--from", changed)
    assert f"unet: engine {one.folder.name} cannot be refitted; found {said}" in ran.error
    assert f"try: ldmrt build {lora} --backend tensorrt --target sm90 --sizes 16x16 --batch 1" in ran.err
    assert not (lora / FOLDER).exists()


def test_killed_half_way(ldmrt: Any, changed: Path, lora: Path, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the plan written and its sidecar not: there is no engine, and the next run makes it."""
    assert ldmrt("build", changed, *BUILD, "--refit", "--components", "unet").code == 0
    import ldmrt.runtime.bundle.engines.store as module

    real = module.write_atomically

    def dies(path: Path) -> Any:
        if path.name == module.SIDECAR:
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomically", dies)
        assert ldmrt("engines", "refit", lora, "--from", changed).code not in (0, 1)
    assert of(lora) == {}
    assert ldmrt("engines", "refit", lora, "--from", changed, "--no-verify").code == 0
    assert of(lora).keys() == {"unet"}


def test_a_build_says_when_it_could_not_be_refitted(
    ldmrt: Any, changed: Path, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refitter.OnnxParserRefitter, "refit_from_file", lambda self, path: False)
    ran = ldmrt("build", changed, *BUILD, "--refit", "--components", "unet")
    assert ran.code == 2
    assert "unet: its weights cannot be replaced; found refit_from_file of" in ran.err
    assert of(changed) == {}
