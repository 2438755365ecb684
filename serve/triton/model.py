"""Run a bundle as a model of Triton's Python backend.

Triton hands over a request and, before it is answered, the next ones: each is answered by its own response sender when
its images are drawn. So requests share the calls of the U-Net as they do in `ldmrt serve`.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ldmrt.runtime.errors import LdmrtError, NotFinite
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.batching.dispatcher import Stopping
from ldmrt.serve.batching.room import check_fits
from ldmrt.serve.jobs.job import Cancelled, Job
from ldmrt.serve.jobs.service import Busy, Service
from ldmrt.serve.models.models import fixed
from ldmrt.serve.models.rows import rows_of

from .tensors import CONTROL, SCALE, request_of

log = logging.getLogger("ldmrt.serve")
BUNDLE, ROWS, WAITING = "bundle", "rows", "waiting"  # parameters that are not arguments of `open_pipeline`
# The name of Triton's code for the first class that an error belongs to.
CODES: tuple[tuple[type[BaseException], str], ...] = (
    (Busy, "UNAVAILABLE"),
    (Stopping, "UNAVAILABLE"),
    (Cancelled, "CANCELLED"),
    (NotFinite, "INTERNAL"),
    (LdmrtError, "INVALID_ARG"),
    (BaseException, "INTERNAL"),
)
MICROSECONDS = 1e6  # of a second, the unit of Triton's timeouts


def _truth(text: str) -> bool:
    return text == "true"


READ: Mapping[str, Callable[[str], Any]] = {  # how the parameters that open a bundle are read
    "backend": str,
    "compute": str,
    "threads": int,
    "low_memory": _truth,
    "tile": int,
    "tile_passes": int,
    "on_overflow": str,
    "keep_optimized": _truth,
}


class Model:
    """Draws with one bundle; the methods are those that Triton's Python backend calls."""

    folder: ClassVar[Path]  # of the model's version
    utils: ClassVar[Any]  # Triton's module triton_python_backend_utils

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Open the bundle that the model's parameters name, relative to the folder of its version."""
        config = json.loads(arguments["model_config"])
        values = {name: value["string_value"] for name, value in config["parameters"].items()}
        opening = {name: read(values[name]) for name, read in READ.items() if values.get(name)}
        self._pipeline = open_pipeline(self.folder / values[BUNDLE], **opening)
        rows = int(values[ROWS]) if values.get(ROWS) else rows_of(self._pipeline)
        name, inputs = arguments["model_name"], [one["name"] for one in config["input"]]
        controls = (one.removeprefix(CONTROL) for one in inputs if one.startswith(CONTROL))
        self._inputs, self._controls = inputs, tuple(one for one in controls if not one.endswith(SCALE))
        self._service = Service(fixed({name: self._pipeline}, {name: rows}), waiting=int(values[WAITING]))

    def execute(self, requests: Sequence[Any]) -> list[None]:
        """Accept requests; each is answered when its images are drawn, or at once where it is invalid."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                seconds = request.timeout() / MICROSECONDS or None
                asked = request_of(self._arrays(request), self._controls)
                check_fits(self._pipeline, asked)
                job = self._service.submit(asked, seconds=seconds)
            except BaseException as error:
                self._fail(sender, error)
            else:
                job.watch(partial(self._told, sender))
        return [None] * len(requests)

    def finalize(self) -> None:
        """Give up what is not yet drawn, and close the bundle."""
        self._service.close()
        self._pipeline.close()

    def _arrays(self, request: Any) -> dict[str, Any]:
        """Copy the tensors of a request: their memory is Triton's, which takes it back after `execute`."""
        tensors = ((name, self.utils.get_input_tensor_by_name(request, name)) for name in self._inputs)
        return {name: np.array(tensor.as_numpy()) for name, tensor in tensors if tensor is not None}

    def _told(self, sender: Any, job: Job, state: State | None) -> None:
        """Answer a request that has ended; one whose caller has given it up ends after its row."""
        if not job.ended:
            if sender.is_cancelled():
                job.cancel()
            return
        try:
            result = job.result(0)
            arrays = {"images": result.pixels, "seeds": np.array(result.seeds, np.uint64)}
            tensors = [self.utils.Tensor(name, np.ascontiguousarray(array)) for name, array in arrays.items()]
            response = self.utils.InferenceResponse(tensors)
        except BaseException as error:
            self._fail(sender, error)
            return
        sender.send(response, flags=self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _fail(self, sender: Any, error: BaseException) -> None:
        """Answer a request by an error; of a bug the log alone has what is inside."""
        message = str(error)
        if not isinstance(error, LdmrtError):
            log.error("a request failed", exc_info=error)
            message = "an error of the server, which its log has"
        code = next(name for kind, name in CODES if isinstance(error, kind))
        failure = self.utils.TritonError(message, getattr(self.utils.TritonError, code))
        response = self.utils.InferenceResponse([], failure)
        sender.send(response, flags=self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
