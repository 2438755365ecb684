"""An engine made ready for one set of input shapes: its buffers, its context, and a CUDA graph of its launch."""

from collections.abc import Mapping
from contextlib import ExitStack
from threading import RLock
from typing import Any

from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Shapes

from .loaded_engine import LoadedPlan
from .memory_layout import place_tensors
from .session import must


class Binding:
    """Upload, launch as often as you like, download: what is on the GPU stays there in between.

    `feedback={"out_state": "state"}` has every launch end by copying an output onto an input, so that the next one goes
    on from there. The first launch runs as it is, the second is recorded, and from then on a launch is one call.
    `owner` is for callers who share it: whoever uploaded last.
    """

    def __init__(self, plan: LoadedPlan, shapes: Shapes, feedback: Mapping[str, str] | None = None) -> None:
        self._plan, self._session = plan, plan.session
        self.shapes = shapes
        self.owner: object = None
        self.claim = RLock()  # who uploads, launches and downloads what belongs together holds it
        self._closing = ExitStack()
        self._graph: Any = None
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
        self._context, self._scratch, made = self._plan.context(shapes)
        tensors = [(spec.name, spec.dtype, tuple(shapes[spec.name])) for spec in self._plan.inputs]
        tensors += [(spec.name, spec.dtype, made[spec.name]) for spec in self._plan.outputs]
        layout = place_tensors(tensors)
        self._inputs = {spec.name for spec in self._plan.inputs}
        address = cuda.malloc(layout.size)
        self._closing.callback(cuda.free, address)
        pinned = cuda.pinned(layout.size)
        self._closing.callback(cuda.unpin, pinned)
        self._closing.callback(self._drop_context)
        self._host = layout.views(pinned)
        self._address = {name: address + one.offset for name, one in layout.tensors.items()}
        self._copies = [self._copy(*pair) for pair in feedback.items()]
        with self._session.explained(self._plan.component, "TensorRT does not take a buffer"):
            for name, place in self._address.items():
                must(self._context.set_tensor_address(name, place), f"set_tensor_address of {name}")
        self._at = 0  # where its scratch memory was, as the context knows it
        self._launched, self._recordable, self._kept = False, True, False
        self._waiting: set[str] = set()  # inputs whose pinned copy the stream may not have read yet

    def _copy(self, output: str, target: str) -> tuple[int, int, int]:
        known = output in self._host and output not in self._inputs and target in self._inputs
        alike = known and all(
            getattr(self._host[output], of) == getattr(self._host[target], of) for of in ("shape", "dtype")
        )
        if not alike:
            problem = f"{output} cannot be fed back as {target}"
            raise LdmrtError(self._plan.component, problem, expected="an output and an input, of one dtype and shape")
        return self._address[target], self._address[output], self._host[target].nbytes

    def upload(self, **arrays: NDArray) -> None:
        """Upload inputs, of the dtypes and shapes that were bound. Others stay as they are on the GPU."""
        self._check()
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
        """Put one run on the stream, and what is fed back."""
        self._check()
        with self._session.turn:
            self._launch()

    def _launch(self) -> None:
        place = self._cuda.scratch(self._scratch)
        if place != self._at:  # somebody has needed more in between
            self._forget_graph()
            self._context.set_device_memory(place, self._scratch)
            self._at = place
        if self._graph is None and self._launched and self._recordable and self._capturable():
            self._graph = self._cuda.record(self._enqueue)
            self._recordable = self._graph is not None
        if self._graph is not None:
            self._cuda.replay(self._graph)
        else:
            self._enqueue()
        self._launched = True

    def _capturable(self) -> bool:
        """TensorRT-RTX says whether it has all its kernels; TensorRT has."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or ask(int(self._cuda.stream))

    def _enqueue(self) -> None:
        with self._session.explained(self._plan.component, "TensorRT could not run"):
            must(self._context.execute_async_v3(int(self._cuda.stream)), "execute_async_v3")
        for copy in self._copies:
            self._cuda.copy(*copy)

    def download(self, *names: str) -> dict[str, NDArray]:
        """Outputs, all where none is named, after everything before is done. Arrays of their own."""
        self._check()
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
        """Wait for what is on the stream by now; others may put more there meanwhile."""
        with self._session.turn:
            self._cuda.mark(self._done)
        self._cuda.wait(self._done)
        self._waiting.clear()
        if self._launched and not self._kept:
            with self._session.turn:
                self._plan.save_cache()  # the first launch has compiled what these shapes need
            self._kept = True

    def _shapes(self) -> str:
        return ", ".join(f"{name}{self._host[name].shape}" for name in sorted(self._inputs))

    def _check(self) -> None:
        if self._context is None:
            raise LdmrtError(self._plan.component, "was closed", hint="bind its shapes again")

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._cuda.forget(self._graph)
        self._graph = None

    def _drop_context(self) -> None:
        self._cuda.synchronize()  # what is on the stream works in the memory that goes next
        self._forget_graph()
        self._context = None

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        self._closing.close()
