"""Faults to plant in an ONNX graph."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
from onnx import numpy_helper

NAMES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


Fault = Callable[[Any], None]  # of a graph


def node(graph: Any, name: str) -> Any:
    return next(node for node in graph.node if node.name == name)


def initializer(graph: Any, name: str) -> Any:
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def swapped(one: str, other: str) -> Fault:
    """Two nodes take each other's weights."""

    def plant(graph: Any) -> None:
        a, b = node(graph, one), node(graph, other)
        a.input[1], b.input[1] = b.input[1], a.input[1]

    return plant


def attribute(name: str, key: str, value: float) -> Fault:
    def plant(graph: Any) -> None:
        found = node(graph, name)
        kept = [a for a in found.attribute if a.name != key]
        del found.attribute[:]
        found.attribute.extend([*kept, onnx.helper.make_attribute(key, value)])

    return plant


def without_bias(name: str) -> Fault:
    return lambda graph: node(graph, name).input.pop()


def passed(name: str) -> Fault:
    """An addition gives its first input."""

    def plant(graph: Any) -> None:
        found = node(graph, name)
        found.op_type = "Identity"
        del found.input[1:]

    return plant


def weight(name: str, value: float) -> Fault:
    """One number of a weight."""

    def plant(graph: Any) -> None:
        tensor = initializer(graph, name)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[0] = value
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return plant


def planted(bundle: Path, folder: Path, name: str, plant: Fault) -> Path:
    """A copy with a fault, its weights inside."""
    model = onnx.load(bundle / name / "model.onnx")
    before = model.SerializeToString()
    plant(model.graph)
    assert model.SerializeToString() != before
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


FAULTS: dict[str, tuple[str, Fault, str]] = {  # component, what is done, where
    "swapped weights, U-Net": (
        "unet",
        swapped(f"{BLOCK}.attn1.to_q/MatMul", f"{BLOCK}.attn1.to_k/MatMul"),
        f"{BLOCK}.attn1.to_q",
    ),
    "swapped weights, decoder": (
        "vae_decoder",
        swapped("decoder.mid_block.resnets.0.conv1/Conv", "decoder.mid_block.resnets.1.conv2/Conv"),
        "decoder.mid_block.resnets.0.conv1",
    ),
    "swapped weights, text encoder": (
        "text_encoder",
        swapped("encoder.layers.1.self_attn.q_proj/MatMul", "encoder.layers.1.self_attn.k_proj/MatMul"),
        "encoder.layers.1.self_attn.q_proj",
    ),
    "epsilon, U-Net": (
        "unet",
        attribute("down_blocks.1.resnets.0.norm2/InstanceNormalization", "epsilon", 1e-3),
        "down_blocks.1.resnets.0.norm2",
    ),
    "epsilon, decoder": (
        "vae_decoder",
        attribute("decoder.up_blocks.1.resnets.0.norm1/InstanceNormalization", "epsilon", 1e-3),
        "decoder.up_blocks.1.resnets.0.norm1",
    ),
    "epsilon, text encoder": (
        "text_encoder",
        attribute("encoder.layers.0.layer_norm2/LayerNormalization", "epsilon", 1e-3),
        "encoder.layers.0.layer_norm2",
    ),
    "bias, U-Net": ("unet", without_bias("mid_block.resnets.1.conv2/Conv"), "mid_block.resnets.1.conv2"),
    "bias, U-Net's last": ("unet", without_bias("conv_out/Conv"), "conv_out"),
    "bias after the attention": ("unet", passed(f"{BLOCK}.attn2.to_out.0/Add"), f"{BLOCK}.attn2.to_out.0"),
    "bias, decoder": ("vae_decoder", without_bias("post_quant_conv/Conv"), "post_quant_conv"),
    "bias, decoder's last": ("vae_decoder", without_bias("decoder.conv_out/Conv"), "decoder.conv_out"),
    "positions, text encoder": ("text_encoder", passed("embeddings/Add"), "embeddings"),
    "scale of the attention": ("unet", attribute(f"{BLOCK}.attn1/Attention", "scale", 0.5), f"{BLOCK}.attn1"),
    "residual": ("unet", passed("up_blocks.1.resnets.0/Add_1"), "up_blocks.1.resnets.0"),
    "sines for cosines": ("unet", lambda graph: setattr(node(graph, "Cos"), "op_type", "Sin"), ""),
}
