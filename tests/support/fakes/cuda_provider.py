"""ONNX Runtime's CUDA provider, played by the CPU's.

From its first launch of a number on, a session looks at nothing but the buffers that it then saw, as CUDA graphs do.
"""

from pathlib import Path
from typing import Any

import onnxruntime as ort

from ldmrt.runtime.backends.ort import engine as engine_ort
from ldmrt.runtime.bundle.graphs import CUDA as CUDA_GRAPH

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Recorder:
    """CUDA's provider, played by the CPU's."""

    open_session, make = ort.InferenceSession, ort.OrtValue.ortvalue_from_shape_and_type

    def __init__(self) -> None:
        self.launches: list[int] = []  # the number of each
        self.files: list[str] = []  # that a session was opened of, without their folders
        self.opened = 0  # sessions of the fused step
        self.refuses = False

    def session(self, path: str, options: Any, providers: list[Any]) -> "Session":
        ((name, how),) = [one if isinstance(one, tuple) else (one, {}) for one in providers]
        assert name == CUDA
        self.files.append(Path(path).name)
        records = "enable_cuda_graph" in how
        if records and self.refuses:
            raise RuntimeError("This session cannot use the graph capture feature\nmore of it")
        self.opened += records
        plain = path.replace(CUDA_GRAPH, ".onnx")  # the CPU has no kernels for the twin's operators
        return Session(self, Recorder.open_session(plain, options, providers=[CPU]), records)

    def value(self, shape: list[int], kind: Any, device: str) -> Any:
        assert device == "cuda"
        return Recorder.make(shape, kind, "cpu")


class Session:
    def __init__(self, recorder: Recorder, real: Any, records: bool) -> None:
        self.recorder, self.real, self.records = recorder, real, records
        self.graphs: dict[int, Any] = {}
        self.get_inputs, self.get_outputs, self.io_binding = real.get_inputs, real.get_outputs, real.io_binding

    def run(self, names: list[str], feeds: dict[str, Any], options: Any = None) -> Any:
        assert held(engine_ort.TURN)
        assert options is not None or not self.records  # its buffers would be others with every run
        return self.real.run(names, feeds)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        assert held(engine_ort.TURN)
        number = int(options.get_run_config_entry("gpu_graph_id"))
        self.recorder.launches.append(number)
        assert self.records or number == -1
        if number == -1:
            self.real.run_with_iobinding(binding)
            return
        if number not in self.graphs:
            self.graphs[number] = binding
            for _ in range(2):  # once for its memory, once recorded
                self.real.run_with_iobinding(binding)
        self.real.run_with_iobinding(self.graphs[number])


def held(lock: Any) -> bool:
    """By this thread."""
    return bool(lock._is_owned())
