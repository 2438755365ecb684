"""A plan that was loaded: the weights on the GPU, and contexts to run it in."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.store import EngineFile
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.tensors import Shapes, TensorSpec

from .session import ELSEWHERE, Refused, Session, must


class LoadedPlan:
    """An engine file, deserialised. Close what was bound to it first."""

    def __init__(self, session: Session, file: EngineFile, bundle: Bundle) -> None:
        self.session, self.file, self.component = session, file, file.recipe.component
        plan = file.read(bundle)
        self._stream = session.join().stream
        try:
            self._check_validity(plan)
            with session.explained(self.component, f"engine {file.folder.name} cannot be loaded"):
                self._engine: Any = must(session.runtime.deserialize_cuda_engine(plan), "deserialize_cuda_engine")
            inputs, outputs = bundle.specs(self.component)
            self.inputs, self.outputs = self._tensors({spec.name: spec for spec in (*inputs, *outputs)})
            self._config, self._cache = self._runtime_config()
        except BaseException:
            session.leave()
            raise

    @property
    def _rtx(self) -> bool:
        return self.session.backend == "tensorrt-rtx"

    def _check_validity(self, plan: bytes) -> None:
        """TensorRT-RTX says beforehand whether an engine runs on this GPU with this driver."""
        if not self._rtx:
            return
        validity, diagnostics = validity_of(self.session, plan)
        if validity == "INVALID":
            problem = (
                f"{self.session.title} says that engine {self.file.folder.name} does not run on {self.session.gpu}"
            )
            raise LdmrtError(self.component, problem, found=diagnostics, hint=ELSEWHERE)

    def _tensors(self, specs: Mapping[str, TensorSpec]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The engine's inputs and outputs, which must be the manifest's: a wrong size would write past a buffer."""
        trt, inputs, outputs = self.session.trt, list[TensorSpec](), list[TensorSpec]()
        hint = f"ldmrt build {self.file.folder.parent.parent}"
        for number in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(number)
            dtype = trt.nptype(self._engine.get_tensor_dtype(name)).__name__.rstrip("_")
            found = f"{name} {dtype}"
            if name not in specs or specs[name].dtype != dtype:
                raise LdmrtError(self.component, "the engine has another tensor", expected=specs.get(name), found=found,
                                 hint=hint)  # fmt: skip
            if self._engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise LdmrtError(self.component, "the engine wants a tensor on the host", found=found, hint=ELSEWHERE)
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(specs[name])
        return tuple(inputs), tuple(outputs)

    def _runtime_config(self) -> tuple[Any, Any]:
        """How TensorRT-RTX compiles its kernels for this GPU, and the cache of those it has compiled before."""
        if not self._rtx:
            return None, None
        trt, config = self.session.trt, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Kernels made for the very shapes, before the first launch: a context is bound to one set of shapes, and while
        # something still compiles, nothing can be recorded.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # ours also hold what is fed back
        cache = config.create_runtime_cache()
        with contextlib.suppress(FileNotFoundError):
            cache.deserialize(self._cache_path.read_bytes())  # one of another driver or GPU is refused, and made anew
        config.set_runtime_cache(cache)
        return config, cache

    @property
    def _cache_path(self) -> Path:
        return self.file.folder / f"runtime-{self.session.gpu}.cache"

    def save_cache(self) -> None:
        """Keep the kernels that were compiled, so that the next process starts faster."""
        if self._cache is None:
            return
        compiled = bytes(self._cache.serialize())
        with contextlib.suppress(OSError):  # a bundle that cannot be written to only starts slower
            if not self._cache_path.is_file() or self._cache_path.stat().st_size != len(compiled):
                with write_atomically(self._cache_path) as file:
                    file.write(compiled)

    def context(self, shapes: Shapes) -> tuple[Any, int, dict[str, tuple[int, ...]]]:
        """A context of its own for these input shapes, how much scratch memory it wants, and its outputs' shapes."""
        bucket = self.file.bucket(shapes)
        if bucket is None:
            raise LdmrtError(self.component, f"engine {self.file.folder.name} does not take {dict(shapes)}")
        with self.session.explained(self.component, "TensorRT cannot make a context"):
            return self._context(bucket, shapes)

    def _context(self, bucket: int, shapes: Shapes) -> tuple[Any, int, dict[str, tuple[int, ...]]]:
        engine, stream = self._engine, int(self._stream)
        strategy = self.session.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = must(engine.create_execution_context(self._config or strategy), "create_execution_context")
        must(context.set_optimization_profile_async(bucket, stream), "set_optimization_profile_async")
        for spec in self.inputs:
            must(context.set_input_shape(spec.name, tuple(shapes[spec.name])), f"set_input_shape of {spec.name}")
        if missing := context.infer_shapes():
            raise Refused(f"no shape of {', '.join(missing)}")
        made = {spec.name: tuple(context.get_tensor_shape(spec.name)) for spec in self.outputs}
        if unknown := [name for name, shape in made.items() if min(shape, default=0) < 0]:
            raise Refused(f"the shape of {unknown[0]} hangs on data")
        return context, int(context.update_device_memory_size_for_shapes()), made

    def close(self) -> None:
        """Free the engine and its weights."""
        if self._engine is not None:
            self._engine = self._config = self._cache = None
            self.session.leave()


def validity_of(session: Session, plan: bytes) -> tuple[str, str]:
    """Ask TensorRT-RTX about a plan on this GPU: VALID, SUBOPTIMAL or INVALID, and why."""
    validity, bits = session.runtime.get_engine_validity(plan)
    names = session.trt.EngineInvalidityDiagnostics.__members__
    why = [name.lower().replace("_", " ") for name, bit in names.items() if int(bits) & int(bit.value)]
    return validity.name, ", ".join(why) or "no reason"
