"""The ONNX files of the tiny bundle: what they declare, what they leak, what they compute."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from ldmrt.export.components.table import components, example
from ldmrt.export.graph.to_onnx import INLINE, OPSET, to_onnx
from ldmrt.model import UNet, load
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.tensors import TensorSpec

NAMES = {  # optimum's
    "text_encoder": (
        ["input_ids"],
        ["last_hidden_state", "pooler_output", *(f"hidden_states.{i}" for i in range(3)), "last_hidden_state.1"],
    ),
    "unet": (["sample", "timestep", "encoder_hidden_states"], ["out_sample"]),
    "vae_decoder": (["latent_sample"], ["sample"]),
    "vae_encoder": (["sample"], ["latent_parameters"]),
}
DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}
each = pytest.mark.parametrize("name", NAMES)


def specs(values: object) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            value.name,
            DTYPES[value.type.tensor_type.elem_type],
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values  # type: ignore[attr-defined]
    )


# optimum evaluates an output's dimensions, split at spaces, from those of the inputs. The tiny factor is 2.
AS_OPTIMUM_READS = {("vae_decoder", side): f"{side}/2 * 2" for side in ("height", "width")}
AS_OPTIMUM_READS |= {("vae_encoder", f"{side}/2"): f"{side} / 2" for side in ("height", "width")}


@each
def test_declares_the_specs(name: str, bundle: Path, checkpoint: Path) -> None:
    graph = onnx.load(bundle / name / "model.onnx", load_external_data=False).graph
    component = components(load(checkpoint))[name]
    declared = specs(graph.input), specs(graph.output)
    assert (component.inputs, component.outputs) == Bundle.open(bundle).specs(name)
    assert declared[0] == component.inputs
    for found, spec in zip(declared[1], component.outputs, strict=True):
        assert (found.name, found.dtype) == (spec.name, spec.dtype)
        assert len(found.shape) == len(spec.shape)
        for dim, meant in zip(found.shape, spec.shape, strict=True):
            assert dim == (AS_OPTIMUM_READS.get((name, meant), meant))
    assert tuple([spec.name for spec in part] for part in declared) == NAMES[name]
    assert all(spec.shape[0] in ("batch", "timesteps") for part in declared for spec in part)


def test_bundle_has_these_components_and_no_other(checkpoint: Path) -> None:
    assert list(NAMES) == list(components(load(checkpoint)))


@each
def test_is_valid_and_of_the_opset(name: str, bundle: Path) -> None:
    path = bundle / name / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
    assert {entry.domain for entry in model.opset_import} <= {"", "pkg.onnxscript.torch_lib"}
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}


@each
def test_weights_above_a_kilobyte_lie_beside_the_graph(name: str, bundle: Path) -> None:
    model = onnx.load(bundle / name / "model.onnx", load_external_data=False)
    external = {True: 0, False: 0}
    for tensor in model.graph.initializer:
        outside = tensor.data_location == onnx.TensorProto.EXTERNAL
        size = int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        assert outside == (size > INLINE), tensor.name
        external[outside] += 1
        if outside:
            assert {entry.key: entry.value for entry in tensor.external_data}["location"] == "model.onnx_data"
    assert all(external.values())
    constants = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    assert all(tensor.ByteSize() <= INLINE + 100 for tensor in constants)


@each
def test_says_nothing_of_the_machine_that_made_it(name: str, bundle: Path) -> None:
    content = b"".join(path.read_bytes() for path in (bundle / name).iterdir() if path.suffix in (".onnx", ".json"))
    assert all(spec.encode() in content for names in NAMES[name] for spec in names)
    repository = Path(__file__).resolve().parents[3]
    for word in (str(repository), str(Path.home()), "site-packages", "/tmp", "Traceback", 'File "'):
        assert word.encode() not in content, word
    model = onnx.load(bundle / name / "model.onnx", load_external_data=False)
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        assert not part.doc_string
        assert not part.metadata_props


@each
def test_computes_what_the_reference_does_at_any_size(name: str, bundle: Path, checkpoint: Path) -> None:
    loaded = load(checkpoint)
    component, factor = components(loaded)[name], loaded.vae.config.factor
    engine, reference = OrtEngine(name, bundle / name / "model.onnx"), component.engine()
    shapes = set()
    for seed, (batch, (h, w)) in enumerate(itertools.product((1, 3, 5), ((2, 2), (8, 8), (3, 10), (16, 7)))):
        sizes = {"batch": batch, "height": h * factor, "width": w * factor}
        feeds = example(component, sizes, seed)
        found, expected = engine(**feeds), reference(**feeds)
        assert list(found) == list(expected)
        for key, value in expected.items():
            shapes.add(value.shape)
            assert found[key].dtype == np.float32
            assert found[key].shape == value.shape
            # float32 on both sides, sums in another order: measured 3e-6 of the largest value
            assert np.abs(found[key] - value).max() <= 2e-5 * np.abs(value).max()
    engine.close()
    assert len(shapes) >= 6  # three batches of two outputs, or as many and more sizes


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["mish", "gelu", "relu"])
def test_every_activation(activation: str, checkpoint: Path, tmp_path: Path) -> None:
    """The bundle's own is SiLU."""
    loaded = load(checkpoint)
    unet = UNet(replace(loaded.unet.config, act_fn=activation, time_embedding_act_fn=activation)).eval()
    unet.load_state_dict(loaded.unet.state_dict())
    component = components(replace(loaded, denoiser=unet))["unet"]
    engine = OrtEngine("unet", to_onnx(component, tmp_path / "unet"))
    feeds = example(component, {"batch": 2, "height": 16, "width": 12})
    (found,), (expected,) = engine(**feeds).values(), component.engine()(**feeds).values()
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()  # as above
    engine.close()


@pytest.mark.slow(minutes=0.05)
def test_nodes_are_sorted_whatever_a_rewriting_leaves(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the optimiser of older versions of onnxscript leaves an attention's divided projections after their use."""

    def reverse(model: onnx_ir.Model) -> None:
        nodes = list(model.graph)
        model.graph.remove(nodes)
        model.graph.extend(reversed(nodes))

    monkeypatch.setattr("ldmrt.export.graph.to_onnx.attend_side_by_side", reverse)
    to_onnx(components(load(checkpoint))["text_encoder"], tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"))


@pytest.mark.slow
def test_a_bias_of_zeros_stays(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    network = load(checkpoint)
    for name, parameter in network.denoiser.named_parameters():
        if name.endswith(".bias"):
            parameter.data.zero_()
    graphs = [to_onnx(components(network)["unet"], tmp_path), bundle / "unet" / "model.onnx"]
    written, expected = (onnx.load(path, load_external_data=False).graph.node for path in graphs)
    assert [(node.op_type, len(node.input)) for node in written] == [
        (node.op_type, len(node.input)) for node in expected
    ]
