"""A FLUX.1 transformer that takes tokens and positions, as optimum exports it, is called with latents."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from ldmrt.export.components.table import components, example
from ldmrt.model import load
from ldmrt.runtime.backends.wrappers.few_rows import FewRows
from ldmrt.runtime.backends.wrappers.packed import PackedTransformer, given_latents
from ldmrt.runtime.tensors import Array, Arrays, TensorSpec
from ldmrt.serve.batching.knee import blank_inputs

SIZES = {"batch": 2, "height": 48, "width": 80, "timesteps": 2}


SHAPES: dict[str, tuple[int | str, ...]] = {
    "hidden_states": ("batch_size", "packed_height_width", 64),
    "encoder_hidden_states": ("batch_size", "sequence_length", 64),
    "pooled_projections": ("batch_size", 32),
    "timestep": ("steps",),
    "txt_ids": ("sequence_length", 3),
    "img_ids": ("packed_height_width", 3),
    "guidance": ("batch_size",),
}


class Tokens:
    """diffusers' own network behind the interface that optimum gives it."""

    inputs = tuple(TensorSpec(name, "float32", shape) for name, shape in SHAPES.items())
    outputs = (TensorSpec("out_hidden_states", "float32", ("batch_size", "packed_height_width", 64)),)

    def __init__(self, folder: Path) -> None:
        self.network, self.closed = FluxTransformer2DModel.from_pretrained(folder / "transformer"), False
        self.calls = 0

    def __call__(self, **arrays: Array) -> Arrays:
        assert arrays.keys() == SHAPES.keys()
        self.calls += 1
        with torch.no_grad():
            given = {name: torch.from_numpy(array) for name, array in arrays.items()}
            return {"out_hidden_states": self.network(**given, return_dict=False)[0].numpy()}

    def close(self) -> None:
        self.closed = True


@pytest.mark.oracle
def test_gives_what_the_exported_network_gives(flux_checkpoint: Path) -> None:
    part, tokens = components(load(flux_checkpoint))["transformer"], Tokens(flux_checkpoint)
    packed = PackedTransformer(tokens)
    inputs = example(part, SIZES)
    found, expected = packed(**inputs)["out_hidden_states"], part.engine()(**inputs)["out_hidden_states"]
    # Of the largest value: the sums of float32 alone, and timestep / 1000 * 1000, which rounds by 6e-8.
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
    assert {spec.name for spec in packed.inputs} == {spec.name for spec in part.inputs}
    blank = blank_inputs(packed, 64, 8, 2)  # as a service measures it
    assert blank["hidden_states"].shape == (2, 16, 8, 8)
    assert packed.outputs[0].shape[:2] == ("batch_size", 16)
    packed.close()
    assert tokens.closed


def test_tells_it_from_one_that_takes_latents(flux_checkpoint: Path) -> None:
    assert isinstance(given_latents(Tokens(flux_checkpoint)), PackedTransformer)
    engine = components(load(flux_checkpoint))["transformer"].engine()
    assert given_latents(engine) is engine


def test_few_rows_are_those_of_latents(flux_checkpoint: Path) -> None:
    """Low memory divides a batch by its rows, and not by its tokens, of which the positions have as many."""
    tokens = Tokens(flux_checkpoint)
    inputs = example(components(load(flux_checkpoint))["transformer"], SIZES | {"height": 512, "width": 512})
    whole = PackedTransformer(tokens)(**inputs)["out_hidden_states"]
    tokens.calls = 0
    divided = FewRows(given_latents(tokens))(**inputs)["out_hidden_states"]
    assert tokens.calls == 2
    assert np.abs(divided - whole).max() <= 1e-5 * np.abs(whole).max()  # sums of float32 in another order
