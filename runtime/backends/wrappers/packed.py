"""Runs a FLUX.1 transformer that takes packed latents and their positions, as optimum exports it."""

import numpy as np

from ldmrt.runtime.bundle.stage_of_configs import PACKED as PATCH
from ldmrt.runtime.tensors import Array, Arrays, Engine, TensorSpec

LATENTS, PREDICTION = "hidden_states", "out_hidden_states"
IMAGE_IDS, TEXT_IDS = "img_ids", "txt_ids"


def given_latents(engine: Engine) -> Engine:
    """Return an engine as it is, or as one that is called with latents where it asks for the positions of tokens."""
    return PackedTransformer(engine) if any(spec.name == IMAGE_IDS for spec in engine.inputs) else engine


class PackedTransformer:
    """A transformer that is called with latents, (B, C, h, w), and gives a prediction of their shape.

    Each token is 2x2 latents, and its position (0, row, column); those of text are 0. Time is divided by 1000, as
    diffusers' pipelines divide it.
    """

    def __init__(self, engine: Engine) -> None:
        """Take the engine that is called with tokens."""
        self._engine = engine
        self.inputs = tuple(_unpacked(spec) for spec in engine.inputs if spec.name not in (IMAGE_IDS, TEXT_IDS))
        self.outputs = tuple(_unpacked(spec) for spec in engine.outputs)

    def __call__(self, **arrays: Array) -> Arrays:
        """Pack the latents, run once, and unpack the prediction."""
        latents, text = arrays[LATENTS], arrays["encoder_hidden_states"]
        rows, columns = (side // PATCH for side in latents.shape[2:])
        positions = {TEXT_IDS: np.zeros((text.shape[1], 3), np.float32), IMAGE_IDS: _positions(rows, columns)}
        packed = {LATENTS: pack(latents), "timestep": arrays["timestep"] / np.float32(1000)}
        out = self._engine(**{**arrays, **packed, **positions})
        return {PREDICTION: unpack(out[PREDICTION], rows, columns)}

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


def _unpacked(spec: TensorSpec) -> TensorSpec:
    """Describe latents where an engine describes tokens."""
    if spec.name not in (LATENTS, PREDICTION):
        return spec
    batch, channels = spec.shape[0], spec.shape[-1]
    wide = channels // PATCH**2 if isinstance(channels, int) else channels
    return TensorSpec(spec.name, spec.dtype, (batch, wide, "height", "width"))


def _positions(rows: int, columns: int) -> Array:
    """Return the positions of an image's tokens, (rows x columns, 3)."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack([np.zeros_like(row), row, column], axis=-1).reshape(-1, 3).astype(np.float32)


def pack(latents: Array) -> Array:
    """Put the latents of each patch into one token: (B, C, h, w) to (B, h/2 w/2, 4 C)."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    tokens: Array = patches.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH**2)
    return tokens


def unpack(tokens: Array, rows: int, columns: int) -> Array:
    """Put tokens back into latents: (B, rows x columns, 4 C) to (B, C, 2 rows, 2 columns)."""
    batch, channels = len(tokens), tokens.shape[-1] // PATCH**2
    patches = tokens.reshape(batch, rows, columns, channels, PATCH, PATCH)
    latents: Array = patches.transpose(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * PATCH, columns * PATCH)
    return latents
