"""A plan that is loaded: its weights on the GPU, and contexts to run it in."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.store import EngineFile, rebuild, with_refit
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.tensors import Shape, Shapes, Specs, TensorSpec

from .api import CudaEngine, ExecutionContext, RuntimeCache, RuntimeConfig
from .refitting import OtherWeights, replace_weights
from .session import ELSEWHERE, Refused, Session, must


class LoadedPlan:
    """An engine file, deserialised. Its bindings are to be closed before it."""

    def __init__(self, session: Session, file: EngineFile, bundle: Bundle, weights: OtherWeights | None = None) -> None:
        """Check the plan's bytes, load it, replace weights where some are given, and compare its tensors.

        Raises:
            LdmrtError: The plan was changed, does not run on this GPU, does not take the weights, or has other inputs
                or outputs than the manifest says.
        """
        self.session, self.file, self.component = session, file, file.recipe.component
        plan = file.read(bundle)
        self._stream = session.join().stream
        try:
            self._check_validity(plan)
            with session.explained(self.component, f"engine {file.folder.name} cannot be loaded"):
                engine = must(session.runtime.deserialize_cuda_engine(plan), "deserialize_cuda_engine")
            if weights is not None:
                problem, hint = (
                    f"engine {file.folder.name} takes no other weights",
                    with_refit(rebuild(bundle, file.recipe)),
                )
                with session.explained(self.component, problem, hint=hint):
                    replace_weights(session, engine, weights)
            self._keep_on_host(engine)
            self._engine: CudaEngine | None = engine
            inputs, outputs = bundle.specs(self.component)
            self.inputs, self.outputs = self._tensors(engine, {spec.name: spec for spec in (*inputs, *outputs)})
            self._config, self._cache = self._runtime_config(engine)
        except BaseException:
            session.leave()
            raise

    @property
    def _rtx(self) -> bool:
        """Tell whether the library is TensorRT-RTX."""
        return self.session.backend == "tensorrt-rtx"

    def _check_validity(self, plan: bytes) -> None:
        """Ask TensorRT-RTX whether the plan runs on this GPU with this driver; TensorRT cannot be asked."""
        if not self._rtx:
            return
        validity, diagnostics = validity_of(self.session, plan)
        if validity == "INVALID":
            name = self.file.folder.name
            problem = f"{self.session.title} says that engine {name} does not run on {self.session.gpu}"
            raise LdmrtError(self.component, problem, found=diagnostics, hint=ELSEWHERE)

    def _keep_on_host(self, engine: CudaEngine) -> None:
        """Set how many bytes of the weights stay on the GPU; the others are streamed from the host at every run."""
        share = self.file.recipe.weights_on_gpu
        if share is not None:
            budget = int(share * engine.streamable_weights_size)
            with self.session.explained(self.component, f"engine {self.file.folder.name} cannot stream its weights"):
                engine.weight_streaming_budget_v2 = budget
                must(engine.weight_streaming_budget_v2 == budget, f"weight_streaming_budget_v2 = {budget}")

    def _tensors(self, engine: CudaEngine, specs: Mapping[str, TensorSpec]) -> tuple[Specs, Specs]:
        """Return the engine's inputs and outputs.

        They must be those of the manifest: a tensor of another size would be written past its buffer.
        """
        trt, inputs, outputs = self.session.trt, list[TensorSpec](), list[TensorSpec]()
        hint = f"ldmrt build {self.file.folder.parent.parent}"
        for number in range(engine.num_io_tensors):
            name = engine.get_tensor_name(number)
            dtype = trt.nptype(engine.get_tensor_dtype(name)).__name__.rstrip("_")
            tensor = f"{name} {dtype}"
            if name not in specs or specs[name].dtype != dtype:
                problem = "the engine has another tensor"
                raise LdmrtError(self.component, problem, expected=specs.get(name), found=tensor, hint=hint)
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise LdmrtError(self.component, "the engine wants a tensor on the host", found=tensor, hint=ELSEWHERE)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(specs[name])
        return tuple(inputs), tuple(outputs)

    def _runtime_config(self, engine: CudaEngine) -> tuple[RuntimeConfig | None, RuntimeCache | None]:
        """Set how TensorRT-RTX compiles kernels for this GPU, and read the cache of those compiled before."""
        if not self._rtx:
            return None, None
        trt, config = self.session.trt, engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Kernels are compiled for the very shapes before the first launch: a context has one set of shapes, and no
        # graph can be recorded while a kernel is still compiled.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        # Graphs of our own are recorded instead: they also hold the copies of outputs that are fed back.
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        cache = config.create_runtime_cache()
        with contextlib.suppress(FileNotFoundError):
            cache.deserialize(self._cache_path.read_bytes())  # refused, and made anew, for another driver or GPU
        config.set_runtime_cache(cache)
        return config, cache

    @property
    def _cache_path(self) -> Path:
        """Return the file of compiled kernels, one for each kind of GPU."""
        return self.file.folder / f"runtime-{self.session.gpu}.cache"

    def save_cache(self) -> None:
        """Keep the compiled kernels, so that the next process starts faster."""
        if self._cache is None:
            return
        compiled = bytes(self._cache.serialize())
        with contextlib.suppress(OSError):  # without write access the next process only starts slower
            if not self._cache_path.is_file() or self._cache_path.stat().st_size != len(compiled):
                with write_atomically(self._cache_path) as file:
                    file.write(compiled)

    def context(self, shapes: Shapes) -> tuple[ExecutionContext, int, dict[str, Shape]]:
        """Make a context for input shapes.

        Returns:
            The context, the bytes of scratch memory that it needs, and the shapes of the outputs.

        Raises:
            LdmrtError: The engine does not take these shapes.
        """
        bucket = self.file.bucket(shapes)
        if bucket is None:
            raise LdmrtError(self.component, f"engine {self.file.folder.name} does not take {dict(shapes)}")
        with self.session.explained(self.component, "TensorRT cannot make a context"):
            return self._context(bucket, shapes)

    def _context(self, bucket: int, shapes: Shapes) -> tuple[ExecutionContext, int, dict[str, Shape]]:
        engine, stream = self._engine, int(self._stream)
        if engine is None:
            raise LdmrtError(self.component, "was closed", hint="open the bundle again")
        strategy = self.session.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = must(engine.create_execution_context(self._config or strategy), "create_execution_context")
        must(context.set_optimization_profile_async(bucket, stream), "set_optimization_profile_async")
        for spec in self.inputs:
            must(context.set_input_shape(spec.name, tuple(shapes[spec.name])), f"set_input_shape of {spec.name}")
        if missing := context.infer_shapes():
            raise Refused(f"no shape of {', '.join(missing)}")
        outputs = {spec.name: tuple(context.get_tensor_shape(spec.name)) for spec in self.outputs}
        if unknown := [name for name, shape in outputs.items() if min(shape, default=0) < 0]:
            raise Refused(f"the shape of {unknown[0]} depends on data")
        return context, int(context.update_device_memory_size_for_shapes()), outputs

    def close(self) -> None:
        """Free the engine and its weights."""
        if self._engine is not None:
            self._engine = self._config = self._cache = None
            self.session.leave()


def validity_of(session: Session, plan: bytes) -> tuple[str, str]:
    """Ask TensorRT-RTX whether a plan runs on this GPU.

    Returns:
        VALID, SUBOPTIMAL or INVALID, and the reasons in words.
    """
    validity, bits = session.runtime.get_engine_validity(plan)
    names = session.trt.EngineInvalidityDiagnostics.__members__
    reasons = [name.lower().replace("_", " ") for name, bit in names.items() if int(bits) & int(bit.value)]
    return validity.name, ", ".join(reasons) or "no reason"
