"""diffusers' own schedulers, computed in float64: their source with float32 written as float64."""

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@cache
def _module(name: str) -> ModuleType:
    """The module of a scheduler, in float64."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8").replace("float32", "float64")
    module = ModuleType(f"{name}_float64")
    module.__package__ = name.rpartition(".")[0]
    module.__file__ = spec.origin
    exec(compile(source, spec.origin, "exec"), module.__dict__)
    return module


@cache
def scheduler_class(class_name: str, *, float64: bool = True) -> Any:
    """A scheduler class of diffusers."""
    from diffusers import schedulers

    theirs = getattr(schedulers, class_name)
    made = getattr(_module(theirs.__module__), class_name) if float64 else theirs
    logging.getLogger(made.__module__).setLevel(logging.ERROR)  # they warn of what is meant here
    return made


@cache
def arguments(class_name: str, method: str) -> Mapping[str, inspect.Parameter]:
    """What a method of diffusers' class takes; nothing where it has no such method."""
    own = getattr(scheduler_class(class_name, float64=False), method, None)
    return {} if own is None else inspect.signature(own).parameters


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' warnings of its old parts and divisions by zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _float64(class_name: str) -> Iterator[None]:
    """torch's default type as float64, to which EDM and IPNDM leave it. Not for TCD: there it is the type in which
    (1 - gamma) t is rounded down to a timestep, and a float64 arrives at others.
    """
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(before if class_name == "TCDScheduler" else torch.float64)
    try:
        with _quiet():
            yield
    finally:
        torch.set_default_dtype(before)


class Theirs:
    """One of diffusers' schedulers on one config: in float64, and as it is for the timesteps that it counts."""

    def __init__(self, class_name: str, config: Mapping[str, Any]) -> None:
        self.class_name = class_name
        self.rng: np.random.Generator | None = None  # of the last bits, where they are shaken
        own = {key: value for key, value in config.items() if key in arguments(class_name, "__init__")}
        with _quiet():
            self.real = self._made(scheduler_class(class_name, float64=False), own)
        with _float64(class_name):
            self.exact = self._made(scheduler_class(class_name), own)
        self.step_arguments = {key: value for key, value in config.items() if key in arguments(class_name, "step")}

    @staticmethod
    def _made(cls: Any, config: Mapping[str, Any]) -> Any:
        grid = cls.set_timesteps
        # Some lay a grid of all timesteps when they are made: 150 ms for nothing.
        with patch.object(cls, "set_timesteps", lambda self, *_: grid(self, 4)):
            return cls(**config)

    def grid(self, begin: int, **asked: Any) -> tuple[Array, Array]:
        """The timesteps of the rows from step `begin` on: diffusers' float32, and as float64 has them."""
        with _quiet():
            self.real.set_timesteps(**asked)
        with _float64(self.class_name):
            self.exact.set_timesteps(**asked)
        if self.rng is not None and hasattr(self.exact, "sigmas_down"):
            # sigma_down ** 2 = sigma_to ** 2 - sigma_up ** 2 has the last bits of sigma_to ** 2.
            share = (self.exact.sigmas_up / self.exact.sigmas_down) ** 2
            lost = (self._bits(len(share)) * (1 + share) / 2).nan_to_num(0, 0, 0)
            self.exact.sigmas_down *= 1 + lost
            self.exact.sigmas_interpol *= 1 + lost / 2
        self.begin = begin * getattr(self.exact, "order", 1)
        self.times = self.exact.timesteps[self.begin :]
        return self.real.timesteps[self.begin :].double().numpy(), self.times.double().numpy()

    def shake(self, seed: int) -> None:
        """Give other last bits to all that the scheduler computes from."""
        self.rng = np.random.default_rng(seed)
        if hasattr(self.exact, "alphas_cumprod"):
            # The last cosines are of angles rounded close to pi / 2: they are good to 1e-13.
            lost = 2.0**9 if self.exact.config.get("beta_schedule") == "squaredcos_cap_v2" else 1
            abar = self.exact.alphas_cumprod
            self.exact.alphas_cumprod = abar * (1 + lost * self._bits(len(abar)))

    def _bits(self, *shape: int) -> Any:
        import torch

        assert self.rng is not None
        return torch.from_numpy(2.0**-52 * self.rng.choice([-1.0, 1.0], shape))

    def first(self, noise: Array, picture: Array | None) -> Array:
        """The first latents, of noise alone or of a picture."""
        import torch

        if hasattr(self.exact, "set_begin_index"):  # as diffusers' img2img pipelines do
            self.exact.set_begin_index(self.begin)
        with _float64(self.class_name):
            x = torch.from_numpy(noise)
            x = x if self.rng is None else x * (1 + self._bits(*x.shape))
            if picture is None:
                return (x * getattr(self.exact, "init_noise_sigma", 1.0)).numpy()
            image = torch.from_numpy(picture)
            if not hasattr(self.exact, "add_noise"):  # of flows
                return self.exact.scale_noise(image, self.times[:1], x).numpy()
            return self.exact.add_noise(image, x, self.times[:1].repeat(len(x))).numpy()

    def walk(self, x: Array, network: Callable[[Array, float], Array], t: Sequence[float], draws: Array) -> Array:
        """The latents after all rows. The network is asked at `t`, and row i draws `draws[i]`."""
        import torch

        drawn = _Drawn(draws)
        _module(type(self.real).__module__).randn_tensor = drawn  # type: ignore[attr-defined]
        if self.class_name == "DPMSolverSDEScheduler":
            self.exact.noise_sampler = drawn.brownian
        with _float64(self.class_name):
            state = torch.from_numpy(x)
            for drawn.row, (time, seen_at) in enumerate(zip(self.times, t, strict=True)):
                scale = getattr(self.exact, "scale_model_input", lambda state, time: state)  # flows have none
                seen = scale(state, time).numpy()
                m = torch.from_numpy(network(seen, float(seen_at)))
                state = self.exact.step(m, time, state, **self.step_arguments).prev_sample
        return state.numpy()


class _Drawn:
    """Stands for `randn_tensor` in a scheduler's module: the noise of the row that is being computed."""

    def __init__(self, noise: Array) -> None:
        self.noise, self.row = noise, 0

    def __call__(self, shape: Sequence[int], **_: Any) -> Any:
        import torch

        return torch.from_numpy(self.noise[self.row])

    def brownian(self, start: Any, end: Any) -> Any:
        """Stands for diffusers' Brownian tree: a motion's way between two noise levels, as noise of variance one.

        A step asks twice, for the way to its geometric middle, then for the whole way; the second contains the first.
        """
        import torch

        now = self.noise[self.row]
        if self.row % 2 == 0:
            return torch.from_numpy(now)
        share = float((start - (start * end) ** 0.5) / (start - end))
        return torch.from_numpy(np.sqrt(share) * self.noise[self.row - 1] + np.sqrt(1 - share) * now)
