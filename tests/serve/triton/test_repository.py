"""An exported repository is whole, is what Triton's own parser reads, and stands as it did where an export fails."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.tensors import TensorSpec
from ldmrt.serve.triton.config_text import onnx_model, text_of
from ldmrt.serve.triton.repository import write_repository

from .conftest import OPENING

NUMPY = {"tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16", "tensor(int64)": "TYPE_INT64",
         "tensor(int32)": "TYPE_INT32"}  # fmt: skip


@pytest.fixture(scope="module")
def proto() -> Any:
    """Triton's model_config.proto, from its client's package, without gRPC, which that package's start asks for."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("the dev extra is not installed")
    file = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(proto: Any, model: Path) -> Any:
    """A model's configuration, as Triton's own protobuf reads it."""
    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), proto.ModelConfig())


def write(bundle: Path, repository: Path, name: str = "tiny", **changes: Any) -> list[str]:
    own = {"replace": changes.pop("replace", False)}
    return write_repository(bundle, name, repository, {**OPENING, **changes}, waiting=8, **own)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder of a folder, with what changes when one is written anew."""
    found = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*")}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in found.items()}


def test_the_drawing_model(repository: Path, bundle: Path, proto: Any) -> None:
    drawing = config(proto, repository / "ldmrt_tiny")
    assert (drawing.name, drawing.backend, drawing.max_batch_size) == ("ldmrt_tiny", "python", 0)
    assert [group.kind for group in drawing.instance_group] == [proto.ModelInstanceGroup.KIND_MODEL]
    needed = [tensor.name for tensor in drawing.input if not tensor.optional]
    assert needed == ["prompt"]
    assert {"negative_prompt", "seed", "image", "strength", "width"} < {tensor.name for tensor in drawing.input}
    assert [(tensor.name, tensor.data_type, [*tensor.dims]) for tensor in drawing.output] == [
        ("images", proto.TYPE_UINT8, [-1, -1, -1, 3]),
        ("seeds", proto.TYPE_UINT64, [-1]),
    ]
    parameters = {name: value.string_value for name, value in drawing.parameters.items()}
    assert parameters == {"bundle": "bundle", "backend": "onnxruntime", "compute": "fp32", "threads": "1",
                          "low_memory": "false", "tile": "", "tile_passes": "3", "on_overflow": "stop",
                          "keep_optimized": "false", "rows": "8", "waiting": "8"}  # fmt: skip
    version = repository / "ldmrt_tiny" / "1"
    assert sorted(path.name for path in version.iterdir()) == ["bundle", "model.py"]
    assert Bundle.open(version / "bundle").manifest == Bundle.open(bundle).manifest
    one = "unet/model.onnx"
    assert (bundle / one).read_bytes() == (version / "bundle" / one).read_bytes()
    assert (bundle / one).stat().st_nlink == 1  # onnx refuses weights in a file with several names


@pytest.mark.parametrize("component", ["text_encoder", "vae_decoder"])
def test_a_plain_model_runs_where_it_lies_and_is_what_its_config_says(
    repository: Path, bundle: Path, proto: Any, component: str, tmp_path: Path
) -> None:
    """As Triton's backend of ONNX Runtime compares them: names, types and shapes, -1 for what is any."""
    model = Path(shutil.copytree(repository / f"tiny_{component}", tmp_path / "alone"))
    stated = config(proto, model)
    assert (stated.name, stated.platform, stated.max_batch_size) == (f"tiny_{component}", "onnxruntime_onnx", 0)
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    for tensors, nodes in ((stated.input, session.get_inputs()), (stated.output, session.get_outputs())):
        assert [
            (tensor.name, proto.DataType.Name(tensor.data_type), [None if dim == -1 else dim for dim in tensor.dims])
            for tensor in tensors
        ] == [
            (node.name, NUMPY[node.type], [dim if isinstance(dim, int) else None for dim in node.shape])
            for node in nodes
        ]
    (node,) = session.get_inputs()
    shape = [dim if isinstance(dim, int) else 2 for dim in node.shape]
    fed = {node.name: np.ones(shape, np.float32 if node.type == "tensor(float)" else np.int64)}
    whole = onnxruntime.InferenceSession(bundle / component / "model.onnx", providers=["CPUExecutionProvider"])
    for output, expected in zip(session.run(None, fed), whole.run(None, fed), strict=True):
        assert output.tobytes() == expected.tobytes()


def test_models_for_a_gpu_are_the_files_made_for_it(bundle: Path, tmp_path: Path, proto: Any) -> None:
    write(bundle, tmp_path / "models", backend="onnxruntime-cuda")
    for component in ("text_encoder", "vae_decoder"):
        model = tmp_path / "models" / f"tiny_{component}"
        assert config(proto, model).instance_group[0].kind == proto.ModelInstanceGroup.KIND_GPU
        made = bundle / component / "model.cuda.onnx"
        assert (model / "1" / "model.onnx").read_bytes() == made.read_bytes()


def test_a_scalar_and_texts_of_any_letters_in_a_config(proto: Any) -> None:
    specs = (TensorSpec("t", "float32", ()), TensorSpec("x", "float16", ("batch", 4, "height/8")))
    message = onnx_model("a", specs, (), gpu=False) | {"parameters": [{"key": 'ü"\\\n', "value": {"string_value": ""}}]}
    read = text_format.Parse(text_of(message), proto.ModelConfig())
    assert [([*one.dims], one.HasField("reshape")) for one in read.input] == [([1], True), ([-1, 4, -1], False)]
    assert list(read.parameters) == ['ü"\\\n']
    with pytest.raises(LdmrtError, match="Triton has no type complex64"):
        onnx_model("a", (TensorSpec("z", "complex64", (1,)),), (), gpu=False)


def test_other_models_stay_and_one_that_is_there_is_replaced_on_demand(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "models" / "other" / "1"
    other.mkdir(parents=True)
    (other / "model.onnx").touch()
    write(bundle, tmp_path / "models")
    before = files(tmp_path / "models")
    assert len(list((tmp_path / "models").iterdir())) == 4
    with pytest.raises(LdmrtError, match="has a model tiny_text_encoder") as caught:
        write(bundle, tmp_path / "models")
    assert caught.value.hint == "--force, or another NAME=BUNDLE"
    assert files(tmp_path / "models") == before
    write(bundle, tmp_path / "models", replace=True)
    after = files(tmp_path / "models")
    assert after.keys() == before.keys()
    assert after["other/1/model.onnx"] == before["other/1/model.onnx"]
    assert after["ldmrt_tiny/config.pbtxt"] != before["ldmrt_tiny/config.pbtxt"]
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "onnxrunntime"}, "did you mean 'onnxruntime'"),
        ({"compute": "bf16"}, "computes in the precision of the bundle"),
        ({"tile": 3}, "invalid tile"),
        ({"tile_passes": 0}, "invalid passes"),
        ({"on_overflow": "go"}, "invalid on_overflow"),
        ({"low_memory": True, "keep_optimized": True}, "exclude each other"),
        ({"name": "a/b"}, "cannot name a model"),
        ({"name": ""}, "cannot name a model"),
    ],
)
def test_what_could_not_be_served_is_refused_and_nothing_is_written(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LdmrtError, match=message):
        write(bundle, tmp_path / "a" / "models", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_leaves_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(old: Path, new: Path) -> None:
        if new.name == "scheduler_config.json":
            raise OSError("no space left")

    monkeypatch.setattr("ldmrt.serve.triton.repository.shutil.copyfile", full)
    (tmp_path / "models").mkdir()
    for place in (tmp_path / "models", tmp_path / "new"):
        with pytest.raises(OSError, match="no space left"):
            write(bundle, place)
    assert [path.name for path in tmp_path.rglob("*")] == ["models"]


def test_bundles_that_cannot_be_written(bundle: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(bundle, tmp_path / "bare"))
    (bare / "ldmrt.json").unlink()
    with pytest.raises(LdmrtError, match="has no manifest, so its tensors are unknown"):
        write(bare, tmp_path / "models")
    linked = Path(shutil.copytree(bundle, tmp_path / "linked"))
    (linked / "secret").symlink_to("/etc/hostname")
    with pytest.raises(LdmrtError, match="leads out of the bundle"):
        write(linked, tmp_path / "models")
    assert not (tmp_path / "models").exists()
