"""What the reference computed: recorded once with PyTorch, compared afterwards with any backend, torch or no torch."""

import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError, first_line
from .files import write_atomically

Arrays = dict[str, NDArray[Any]]
CONTROL = "controls."
WALK = ("t", "x", "said", "images")


@dataclass(frozen=True)
class Case:
    """One call of a component: what it was given and what it gave."""

    component: str
    name: str  # "prompt", "row 10", "batch 3 at 64x72"
    inputs: Arrays = field(repr=False)
    outputs: Arrays = field(repr=False)


def asked(options: dict[str, Any], given: Arrays) -> dict[str, Any]:
    """The fields of a request, its pictures among them: "image", "mask", "controls.NAME"."""
    controls = {name.removeprefix(CONTROL): one for name, one in given.items() if name.startswith(CONTROL)}
    return {**options, **{name: given[name] for name in ("image", "mask") if name in given}, "controls": controls}


@dataclass(frozen=True)
class Walk:
    """Pictures as the reference drew them: the fields of their `Request` and pictures `given` among them; at every row
    model time (rows,), the latents before it and what the network said of them, after guidance, (rows, B, C, h, w)
    in float32; the last latents; and the pictures (B, H, W, 3) in uint8.
    """

    options: dict[str, Any]
    given: Arrays = field(repr=False)  # "image", "mask", "controls.NAME"
    t: NDArray[np.float64] = field(repr=False)
    x: NDArray[np.float32] = field(repr=False)  # (rows + 1, B, C, h, w)
    said: NDArray[np.float32] = field(repr=False)
    images: NDArray[np.uint8] = field(repr=False)

    @property
    def arrays(self) -> Arrays:
        """All of them."""
        return {name: getattr(self, name) for name in WALK} | self.given

    @property
    def asked(self) -> dict[str, Any]:
        """The fields of the request, pictures and all."""
        return asked(self.options, self.given)


@dataclass(frozen=True)
class Reference:
    """Calls of each component, and a walk."""

    cases: tuple[Case, ...]
    walk: Walk
    scaling_factor: float

    @property
    def small(self) -> "Reference":
        """Without what the walk shows too, U-Net, controls, decoder, layers of text encoders; and real inputs alone.
        About a megabyte at 256 pixels.
        """
        kept = [one for one in self.cases if one.component.startswith(("tokenizer", "text_encoder", "vae_encoder"))]
        kept = [one for one in kept if not one.name.startswith("batch")]
        plain = [{name: array for name, array in one.outputs.items() if "." not in name} for one in kept]
        return replace(self, cases=tuple(replace(one, outputs=out) for one, out in zip(kept, plain, strict=True)))

    def save(self, path: Path) -> None:
        """As a NumPy archive."""
        table = [[one.component, one.name, list(one.inputs), list(one.outputs)] for one in self.cases]
        walk = self.walk
        about: dict[str, Any] = {"cases": table, "options": walk.options, "given": list(walk.given)}
        about["scaling_factor"] = self.scaling_factor
        arrays: Arrays = {"about": np.array(json.dumps(about)), **walk.arrays}
        for i, one in enumerate(self.cases):
            for side in (one.inputs, one.outputs):
                arrays |= {f"{i}.{name}": array for name, array in side.items()}
        with write_atomically(path) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """What `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
                cases = [
                    Case(component, name, *({key: arrays[f"{i}.{key}"] for key in side} for side in (inputs, outputs)))
                    for i, (component, name, inputs, outputs) in enumerate(about["cases"])
                ]
                given = {name: arrays[name] for name in about["given"]}
                walk = Walk(about["options"], given, *(arrays[name] for name in WALK))
                return cls(tuple(cases), walk, about["scaling_factor"])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            problem = f"cannot read the stored reference {path}"
            raise LdmrtError("certificate", problem, found=first_line(error)) from None
