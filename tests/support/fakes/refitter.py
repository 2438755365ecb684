"""TensorRT's refitter, as its documentation and its parser's source say: weights by name, by reference, all or none."""

import enum
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .networks import plain, weights_of


class SerializationFlag(enum.IntEnum):
    EXCLUDE_WEIGHTS = 0
    INCLUDE_REFIT = 2


class ISerializationConfig:
    def __init__(self) -> None:
        self._flags: set[SerializationFlag] = set()

    def set_flag(self, flag: SerializationFlag) -> bool:
        self._flags.add(flag)
        return True


class Weights:
    def __init__(self, value: NDArray[Any] | None = None) -> None:
        self._value = np.empty(0, np.float32) if value is None else value
        self.size = self._value.size

    def numpy(self) -> Any:
        return self._value


class Refitter:
    """Layers are fused: who gives a layer's kernel shall give its bias too."""

    def __init__(self, engine: Any, logger: Any) -> None:
        if not engine.refittable:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._engine, self._logger = engine, logger
        self._given: dict[str, Any] = {}  # references: who gives keeps the memory

    def _now(self) -> dict[str, Any]:
        return self._engine._stored["weights"]

    def get_all_weights(self) -> list[str]:
        return list(self._now())

    def get_missing_weights(self) -> list[str]:
        layers = {name.rpartition(".")[0] for name in self._given}
        return [name for name in self._now() if name not in self._given and name.rpartition(".")[0] in layers]

    def set_named_weights(self, name: str, weights: NDArray[Any]) -> bool:
        if name not in self._now() or self._now()[name][:2] != plain(weights)[:2]:
            return False
        self._given[name] = weakref.ref(weights)
        return True

    def get_named_weights(self, name: str) -> Weights:
        if name not in self._given:
            return Weights()
        value = self._given[name]()
        assert value is not None, "the memory of the weights is gone"
        return Weights(value)

    def refit_cuda_engine(self) -> bool:
        if self.get_missing_weights():
            return False
        self._now().update({name: plain(self.get_named_weights(name).numpy()) for name in self._given})
        self._engine._net = self._engine._network()
        return True


class OnnxParserRefitter:
    """Holds what it has read as long as it lives."""

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self._refitter, self._logger = refitter, logger
        self._held: list[NDArray[Any]] = []

    def refit_from_file(self, path: str) -> bool:
        found, done = weights_of(path), 0
        for name in self._refitter.get_all_weights():
            if name in found:
                self._held.append(found[name])
                if not self._refitter.set_named_weights(name, self._held[-1]):
                    self._logger.log(self._logger.ERROR, f"Failed to set named weights: {name}")
                    return False
                done += 1
        if done < len(self._refitter.get_all_weights()):
            self._logger.log(self._logger.ERROR, f"Only successfully refitted {done} weights")
            return False
        return True


def stored_weights(path: str) -> dict[str, Any]:
    """Those of an ONNX file, as a plan keeps them."""
    return {name: plain(value) for name, value in weights_of(path).items()}
