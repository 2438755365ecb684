"""What engines will take: activations counted on small graphs by hand, and the room that a machine has."""

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ldmrt.export.engines import engine_memory
from ldmrt.export.engines.activations import activations, read
from ldmrt.export.engines.profiles import Wanted, recipes
from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.bundle.engines.engine_key import WEIGHTS_ON_GPU


def graph(nodes: list[Any], *, initializers: tuple[Any, ...] = (), output: str = "y") -> Any:
    made = helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 8, "h", "w"])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT16, None)],
        initializers,
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)])


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def constant(name: str, value: Any) -> Any:
    return onnx.numpy_helper.from_array(np.asarray(value), name)


X = {"x": (2, 8, 4, 4)}
ONE = 2 * 8 * 4 * 4 * 2  # bytes of x


def test_a_chain_holds_two_at_once() -> None:
    nodes = [node("Softmax", "x", "a"), node("Softmax", "a", "b"), node("Softmax", "b", "c"), node("Softmax", "c", "y")]
    assert activations(graph(nodes), X).live == 2 * ONE


def test_what_is_added_later_is_held() -> None:
    nodes = [node("Softmax", "x", "a"), node("Softmax", "a", "b"), node("Softmax", "b", "c"), node("Add", "c a", "y")]
    assert activations(graph(nodes), X).live == 3 * ONE


def test_sums_take_the_place_of_what_they_read() -> None:
    nodes = [node("Softmax", "x", "a"), node("Add", "a x", "b"), node("Add", "b x", "c"), node("Softmax", "c", "y")]
    assert activations(graph(nodes), X).live == ONE


def test_views_take_nothing_and_keep_their_source() -> None:
    nodes = [
        node("Softmax", "x", "a"), node("Reshape", "a shape", "v"), node("Softmax", "x", "b"),
        node("Softmax", "b", "c"), node("Reshape", "v back", "w"), node("Add", "c w", "y"),
    ]  # fmt: skip
    shapes = (constant("shape", [2, -1]), constant("back", [2, 8, 4, 4]))
    assert activations(graph(nodes, initializers=shapes), X).live == 3 * ONE


def test_casts_to_outputs_hold_nothing() -> None:
    """A text encoder casts the states of its layers at the end of the graph, and TensorRT in the layer's kernel."""
    layers = [
        node("Softmax", "x", "a"),
        node("Softmax", "a", "b"),
        node("Softmax", "b", "c"),
        node("Softmax", "c", "y"),
    ]
    casts = [node("Cast", name, f"{name}_out", to=TensorProto.FLOAT) for name in "abc"]
    made = graph([*layers, *casts])
    made.graph.output.extend(helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None) for name in "abc")
    assert activations(made, X).live == activations(graph(layers), X).live == 2 * ONE
    del made.graph.output[1:]
    assert activations(made, X).live > 2 * ONE  # where they are no outputs


def test_shapes_are_computed() -> None:
    """As PyTorch's exporter leaves them: sizes read, multiplied and put together again."""
    nodes = [
        node("Shape", "x", "n", start=0, end=1), node("Shape", "x", "h", start=2, end=3),
        node("Shape", "x", "w", start=3), node("Mul", "h w", "hw"), node("Concat", "n eight hw", "to", axis=0),
        node("Softmax", "x", "a"),
        node("Reshape", "a to", "b"), node("Transpose", "b", "t", perm=[0, 2, 1]), node("MatMul", "t b", "m"),
        node("Softmax", "m", "s"), node("ReduceMax", "s", "y"),
    ]  # fmt: skip
    made = graph(nodes, initializers=(constant("eight", [8]),))
    sixteen_squared = 2 * 16 * 16 * 2
    assert activations(made, X).live == max(2 * sixteen_squared, ONE + ONE + sixteen_squared)
    assert activations(made, {"x": (4, 8, 8, 8)}).live == 2 * 4 * 64 * 64 * 2


def test_resized_and_normalised() -> None:
    nodes = [
        node("InstanceNormalization", "x scale bias", "a"),
        node("Resize", "a  scales".replace("  ", " nothing "), "b", mode="nearest"), node("Softmax", "b", "y"),
    ]  # fmt: skip
    nodes[1].input[1] = ""
    ones = np.ones(8, np.float16)
    made = graph(nodes, initializers=(constant("scale", ones), constant("bias", ones),
                                      constant("scales", np.float32([1, 1, 2, 2]))))  # fmt: skip
    assert activations(made, X).live == ONE + 4 * ONE


def test_pixels_between_pixels_are_written_one_row_after_the_other() -> None:
    """What four convolutions give, then rows of it, then the whole: three times the same bytes."""
    nodes = [node("Softmax", "x", f"p{i}") for i in range(4)]
    nodes += [node("Unsqueeze", f"p{i} apart", f"q{i}") for i in range(4)]
    nodes += [node("Concat", f"q{2 * i} q{2 * i + 1}", f"r{i}", axis=5) for i in range(2)]
    nodes += [node("Concat", "r0 r1", "t", axis=3), node("Reshape", "t size", "u"), node("ReduceMax", "u", "y")]
    made = graph(nodes, initializers=(constant("apart", [3, 5]), constant("size", [0, 0, 8, 8])))
    assert activations(made, X).live == 3 * 4 * ONE


@pytest.mark.parametrize("side", [16, 32, 128])
@pytest.mark.parametrize("batch", [1, 4])
def test_every_component_grows_as_its_pictures_do(bundle: Path, side: int, batch: int) -> None:
    """Convolutions take memory by the pixel: what they hold at twice the side is four times as much."""
    model = read(bundle / "vae_decoder" / "model.onnx")
    for attention in (one for one in model.graph.node if one.op_type == "Attention"):
        attention.op_type = "Add"  # of what is as large
        del attention.input[2:], attention.attribute[:]
    live = activations(model, {"latent_sample": (batch, 4, side, side)}).live
    assert live == batch * (side / 16) ** 2 * activations(model, {"latent_sample": (1, 4, 16, 16)}).live


@pytest.mark.parametrize(("kind", "width", "scores"), [(np.float32, 8, 2), (np.float16, 256, 0), (np.float16, 512, 2)])
@pytest.mark.parametrize("apart", [True, False])
def test_scores_of_attention_are_written_in_float32_and_of_wide_heads(
    kind: Any, width: int, scores: int, apart: bool
) -> None:
    """TensorRT fuses the other: of the shipped model's U-Net at 512x512 it logs 1100 MB and 29.

    Of an autoencoder's encoder, whose head has 512 numbers, it logs 1191 MB at 1024x1024 in half precision.
    """
    shapes = {"q": (2, 4, 64, width), "k": (2, 4, 32, width)}
    if not apart:
        shapes = {name: (2, shape[2], 4 * width) for name, shape in shapes.items()}
    heads = {} if apart else {"q_num_heads": 4, "kv_num_heads": 4}
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    inputs = [helper.make_tensor_value_info(name, element, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("y", element, None)
    made = helper.make_graph([node("Attention", "q k k", "y", **heads)], "attention", inputs, [output])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)])
    assert activations(model, shapes).live == scores * (2 * 4 * 64 * 32) * np.dtype(kind).itemsize


def predictions(bundle: Path, sizes: str, batch: str = "1") -> dict[str, engine_memory.Memory]:
    opened = Bundle.open(bundle, check=False)
    wanted = Wanted.read(sizes, batch, "on", 16)
    made = recipes(opened, wanted, backend="tensorrt-rtx", version="1", targets=["sm89"])
    return {one.component: engine_memory.predict(opened, one) for one in made}


def test_a_prediction(bundle: Path) -> None:
    found = predictions(bundle, "16x16", "4")["unet"]
    floats = 2 * (8 * 4 * 8 * 8) + 8 + 8 * 16 * 24  # sample and out_sample, timestep, words
    assert found.io == 4 * floats
    assert found.weights == sum((bundle / "unet" / name).stat().st_size for name in ("model.onnx", "model.onnx_data"))
    assert found.scratch > engine_memory.SCRATCH
    assert found.disk > found.weights
    assert found.build > found.weights * engine_memory.COPIES


def test_the_largest_bucket_counts(bundle: Path) -> None:
    both, large = predictions(bundle, "16x16,64x64"), predictions(bundle, "64x64")
    for name, found in both.items():
        assert (found.scratch, found.io) == (large[name].scratch, large[name].io)
    small = predictions(bundle, "16x16")
    assert small["unet"].scratch < large["unet"].scratch


def test_engines_share_the_largest_scratch(bundle: Path) -> None:
    rows = predictions(bundle, "16x16")
    one = rows["unet"]
    assert engine_memory.vram([one]) == one.weights + one.io + one.scratch
    two = rows["vae_decoder"]
    assert engine_memory.vram([one, two]) == one.weights + one.io + two.weights + two.io + max(one.scratch, two.scratch)
    assert engine_memory.vram([]) == 0


def test_the_weights_that_stay_on_the_gpu(bundle: Path) -> None:
    """A share of 0 to 1 of all; the disk, and the memory that a build checks, are those of all weights."""
    opened = Bundle.open(bundle, check=False)
    (all_of_them,) = (row for row in predictions(bundle, "16x16").values() if row.recipe.component == "unet")
    for share in (0.0, 0.25, 1.0):
        recipe = replace(all_of_them.recipe, flags=(*all_of_them.recipe.flags, f"{WEIGHTS_ON_GPU}{share:g}"))
        found = engine_memory.predict(opened, recipe)
        assert found == replace(all_of_them, recipe=recipe, weights=round(share * all_of_them.weights))
        assert found.unmapped == all_of_them.unmapped


def test_no_room(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, rows = Bundle.open(bundle, check=False), list(predictions(bundle, "16x16").values())
    engine_memory.check_memory(opened, rows)
    engine_memory.check_memory(opened, [])
    monkeypatch.setattr(engine_memory, "free_memory", lambda: max(row.build - row.weights for row in rows) - 1)
    with pytest.raises(LdmrtError, match="this machine has too little memory to build it"):
        engine_memory.check_memory(opened, rows)
    monkeypatch.setattr(engine_memory, "free_memory", lambda: max(row.build - row.weights for row in rows))
    engine_memory.check_memory(opened, rows)  # the pages of the weights' file need not stay in memory
    monkeypatch.setattr(engine_memory, "free_memory", lambda: None)
    engine_memory.check_memory(opened, rows)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(engine_memory.shutil, "disk_usage", lambda path: usage(9, 9, sum(row.disk for row in rows) - 1))
    with pytest.raises(LdmrtError, match="not enough space for the engines on the disk"):
        engine_memory.check_memory(opened, rows)
