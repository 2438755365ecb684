"""Predicts the memory and disk space that engines take, before they are built.

The figures below were fitted to 19 engines that TensorRT-RTX 1.7.1 built without a GPU, of the shipped model and of
Stable Diffusion 1.5 and XL, in float16 and float32, for images of 64 to 1024 pixels: scratch comes within a sixth or
25 MB of what was logged, most within a twentieth, also where scores of attention take most of it; what a build adds to
memory, within a sixth or 50 MB. Engines of Stable Diffusion 3.5 medium, built afterwards, were predicted as closely,
but for one whose build filled the machine's memory. A fused step takes 2 to 8 MB of scratch more, in its products of
sizes that are known when it runs. Full TensorRT picks its kernels on the GPU and may take more.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import Recipe
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.host import free_memory, megabytes
from ldmrt.runtime.tensors import TensorSpec, shape_of, sizes_of

from .activations import activations, read

SCRATCH = 8 << 20  # bytes that an engine takes beside its activations
KERNELS = 20_000  # bytes of a plan for each node of the graph, beside the weights: 10 to 30 thousand
# The most memory that a build adds to its process: the library, each node, and the weights as often as TensorRT copies
# them.
LIBRARY, NODE, COPIES = 90_000_000, 450_000, 3.05


@dataclass(frozen=True)
class Memory:
    """Holds what one engine takes, in bytes."""

    recipe: Recipe
    weights: int  # on the GPU, where some are streamed those that stay there
    scratch: int  # on the GPU while it runs
    io: int  # its inputs and outputs on the GPU, at their largest
    disk: int
    build: int  # in the memory of the machine that builds it
    file: int  # all the weights as they lie on the disk, which a build maps

    @property
    def unmapped(self) -> int:
        """The part of `build` that is not the mapped file of the weights, whose pages a full memory gives back."""
        return self.build - self.file


def predict(bundle: Bundle, recipe: Recipe) -> Memory:
    """Predict the bytes that an engine takes on the GPU, on disk and while it is built; no weights are read.

    TensorRT's budget for weights that are streamed is a share of those that it can stream, which its documentation says
    may not be all of them. They are counted as all, as only a GPU tells how many they are.
    """
    name = recipe.component
    model = read(bundle.model(name))
    file = sum(each.stat().st_size for each in (bundle.model(name), *bundle.weights(name)))
    live = max(
        activations(model, {tensor: shapes.max for tensor, shapes in bucket.items()}).live for bucket in recipe.profile
    )
    nodes = len(model.graph.node)
    inputs, outputs = bundle.specs(name)
    return Memory(
        recipe,
        weights=file if recipe.weights_on_gpu is None else round(recipe.weights_on_gpu * file),
        scratch=SCRATCH + live,
        io=max(
            _io(inputs, outputs, {tensor: shapes.max for tensor, shapes in bucket.items()}) for bucket in recipe.profile
        ),
        disk=file + KERNELS * nodes,
        build=round(LIBRARY + NODE * nodes + COPIES * file),
        file=file,
    )


def vram(engines: Iterable[Memory]) -> int:
    """Return the bytes that engines take on one GPU when they run one after another and share the largest scratch."""
    rows = list(engines)
    return sum(engine.weights + engine.io for engine in rows) + max((engine.scratch for engine in rows), default=0)


def check_memory(bundle: Bundle, engines: Iterable[Memory]) -> None:
    """Check that the disk has space for all engines, and this machine the memory to build the largest.

    Raises:
        LdmrtError: One of them does not suffice.
    """
    rows = list(engines)
    disk, free = sum(engine.disk for engine in rows), shutil.disk_usage(bundle.path).free
    if disk > free:
        found, hint = f"{megabytes(free)} free", f"ldmrt engines prune {bundle.path}, or fewer --sizes"
        problem = f"not enough space for the engines on the disk of {bundle.path}"
        raise LdmrtError("build", problem, expected=megabytes(disk), found=found, hint=hint)
    most, memory = max(rows, key=lambda engine: engine.unmapped, default=None), free_memory()
    if most is not None and memory is not None and most.unmapped > memory:
        where, problem = most.recipe.component, "this machine has too little memory to build it"
        found, hint = f"{megabytes(memory)} available", "free some, add swap, or build on a larger machine"
        raise LdmrtError(where, problem, expected=megabytes(most.unmapped), found=found, hint=hint)


def _io(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], shapes: dict[str, tuple[int, ...]]) -> int:
    """Sum the bytes of the tensors: an output's symbols are those of the inputs."""
    sizes: dict[str, int] = {}
    total = 0
    for spec in inputs:
        sizes |= sizes_of(spec, shapes[spec.name])
        total += prod(shapes[spec.name]) * _itemsize(spec)
    return total + sum(prod(shape_of(spec, sizes)) * _itemsize(spec) for spec in outputs)


def _itemsize(spec: TensorSpec) -> int:
    return 2 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).itemsize
