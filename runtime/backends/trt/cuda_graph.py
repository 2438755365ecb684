"""A binding of an engine to one set of input shapes: buffers, context, and a CUDA graph of the launch."""

from collections.abc import Mapping
from contextlib import ExitStack
from threading import RLock

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Array, Arrays, Shapes

from .api import ExecutionContext
from .cuda import Handle
from .loaded_engine import LoadedPlan
from .memory_layout import place_tensors
from .session import must


class Binding:
    """Upload, launch as often as you like, download: tensors stay on the GPU in between.

    The first launch runs as it is, the second is recorded, and from then on a launch is one call. `owner` is for
    callers that share a binding: the one that uploaded last.
    """

    def __init__(self, plan: LoadedPlan, shapes: Shapes, feedback: Mapping[str, str] | None = None) -> None:
        """Allocate buffers and make a context.

        Args:
            plan: The loaded engine.
            shapes: The shapes of all inputs.
            feedback: Outputs that every launch copies onto inputs at its end, such as {"out_state": "state"}, so that
                the next launch continues from there.

        Raises:
            LdmrtError: The GPU has not enough memory, or TensorRT refuses the shapes.
        """
        self._plan, self._session = plan, plan.session
        self.shapes = shapes
        self.owner: object = None
        self.claim = RLock()  # held by a caller while it uploads, launches and downloads
        self._closing = ExitStack()
        self._context: ExecutionContext | None = None
        self._graph: Handle | None = None
        try:
            self._open(shapes, dict(feedback or {}))
        except BaseException:
            self._closing.close()
            raise

    def _open(self, shapes: Shapes, feedback: dict[str, str]) -> None:
        self._cuda = cuda = self._session.join()
        self._closing.callback(self._session.leave)
        self._done = cuda.event()
        self._closing.callback(cuda.drop, self._done)
        self._context, self._scratch, output_shapes = self._plan.context(shapes)
        tensors = [(spec.name, spec.dtype, tuple(shapes[spec.name])) for spec in self._plan.inputs]
        tensors += [(spec.name, spec.dtype, output_shapes[spec.name]) for spec in self._plan.outputs]
        layout = place_tensors(tensors)
        self._inputs = {spec.name for spec in self._plan.inputs}
        address = cuda.malloc(layout.size)
        self._closing.callback(cuda.free, address)
        pinned = cuda.pinned(layout.size)
        self._closing.callback(cuda.unpin, pinned)
        self._closing.callback(self._drop_context)
        self._host = layout.views(pinned)
        self._address = {name: address + tensor.offset for name, tensor in layout.tensors.items()}
        self._copies = [self._copy(*pair) for pair in feedback.items()]
        with self._session.explained(self._plan.component, "TensorRT does not take a buffer"):
            for name, place in self._address.items():
                must(self._context.set_tensor_address(name, place), f"set_tensor_address of {name}")
        self._scratch_address = 0  # of the scratch memory that the context uses
        self._launched, self._recordable, self._kept = False, True, False
        self._waiting: set[str] = set()  # inputs whose pinned copy the stream may not have read yet

    def _copy(self, output: str, target: str) -> tuple[int, int, int]:
        """Return target, source and size of the copy that feeds an output back as an input."""
        ends = output not in self._inputs and target in self._inputs
        source, sink = self._host.get(output), self._host.get(target)
        if not ends or source is None or sink is None or (source.shape, source.dtype) != (sink.shape, sink.dtype):
            problem = f"{output} cannot be fed back as {target}"
            raise LdmrtError(self._plan.component, problem, expected="an output and an input, of one dtype and shape")
        return self._address[target], self._address[output], sink.nbytes

    def upload(self, **arrays: Array) -> None:
        """Upload inputs, of the dtypes and shapes that were bound; others keep their values on the GPU."""
        self._opened()
        if self._waiting.intersection(arrays):
            self.synchronize()
        for name, array in arrays.items():
            if name not in self._inputs or array.shape != self._host[name].shape:
                problem = f"cannot upload {name}"
                raise LdmrtError(self._plan.component, problem, expected=self._shapes(), found=array.shape)
            self._host[name][...] = array
        with self._session.turn:
            for name in arrays:
                self._cuda.upload(self._address[name], self._host[name])
                self._waiting.add(name)

    def launch(self) -> None:
        """Put one run on the stream, and the copies of outputs that are fed back."""
        with self._session.turn:
            self._launch()

    def _launch(self) -> None:
        context, address = self._opened(), self._cuda.scratch(self._scratch)
        if address != self._scratch_address:  # another binding has needed more in between
            self._forget_graph()
            context.set_device_memory(address, self._scratch)
            self._scratch_address = address
        if self._graph is None and self._launched and self._recordable and self._capturable():
            self._graph = self._cuda.record(self._enqueue)
            self._recordable = self._graph is not None
        if self._graph is not None:
            self._cuda.replay(self._graph)
        else:
            self._enqueue()
        self._launched = True

    def _capturable(self) -> bool:
        """Tell whether all kernels are compiled: TensorRT's always are, TensorRT-RTX is asked."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(int(self._cuda.stream)))

    def _enqueue(self) -> None:
        with self._session.explained(self._plan.component, "TensorRT could not run"):
            must(self._opened().execute_async_v3(int(self._cuda.stream)), "execute_async_v3")
        for copy in self._copies:
            self._cuda.copy(*copy)

    def download(self, *names: str) -> Arrays:
        """Wait for everything before, and return copies of outputs, of all if none is named."""
        self._opened()
        wanted = names or tuple(name for name in self._host if name not in self._inputs)
        for name in wanted:
            if name not in self._host:
                raise LdmrtError(self._plan.component, f"no output {name}", found=", ".join(self._host))
        with self._session.turn:
            for name in wanted:
                self._cuda.download(self._host[name], self._address[name])
        self.synchronize()
        return {name: self._host[name].copy() for name in wanted}

    def synchronize(self) -> None:
        """Wait for the work that is on the stream now; other threads may put more there meanwhile."""
        with self._session.turn:
            self._cuda.mark(self._done)
        self._cuda.wait(self._done)
        self._waiting.clear()
        if self._launched and not self._kept:
            with self._session.turn:
                self._plan.save_cache()  # the first launch has compiled the kernels for these shapes
            self._kept = True

    def _shapes(self) -> str:
        return ", ".join(f"{name}{self._host[name].shape}" for name in sorted(self._inputs))

    def _opened(self) -> ExecutionContext:
        if self._context is None:
            raise LdmrtError(self._plan.component, "was closed", hint="bind its shapes again")
        return self._context

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._cuda.forget(self._graph)
        self._graph = None

    def _drop_context(self) -> None:
        self._cuda.synchronize()  # work on the stream uses the memory that is freed next
        self._forget_graph()
        self._context = None

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        self._closing.close()
