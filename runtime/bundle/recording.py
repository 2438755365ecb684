"""What the reference computed: recorded once with PyTorch, compared afterwards with any backend, torch or no torch."""

import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.numpy_archive import read_archive
from ldmrt.runtime.files.reading import parse_json, plain_file
from ldmrt.runtime.files.writing import write_atomically

Arrays = dict[str, NDArray[Any]]
CONTROL = "controls."
WALK = ("t", "x", "said", "images")
STORE = "ldmrt verify BUNDLE --against CHECKPOINT --store"
STEPS = 1000  # of a recorded request, at most
LARGEST = 1e9  # of a scaling factor
# The fields of a recorded request.
PLAIN = {"prompt": (str,), "seed": (int,), "width": (int,), "height": (int,), "steps": (int,), "guidance": (float, int)}


@dataclass(frozen=True)
class Case:
    """Records one call of a component: its inputs and outputs."""

    component: str
    name: str  # "prompt", "row 10", "batch 3 at 64x72"
    inputs: Arrays = field(repr=False)
    outputs: Arrays = field(repr=False)


def asked(options: dict[str, Any], given: Arrays) -> dict[str, Any]:
    """The fields of a request, its images among them: "image", "mask", "controls.NAME"."""
    controls = {name.removeprefix(CONTROL): one for name, one in given.items() if name.startswith(CONTROL)}
    return {**options, **{name: given[name] for name in ("image", "mask") if name in given}, "controls": controls}


@dataclass(frozen=True)
class Trajectory:
    """Images as the reference drew them: the fields of their `Request` and images `given` among them; at every row
    model time (rows,), the latents before it and what the network said of them, after guidance, (rows, B, C, h, w)
    in float32; the last latents; and the images (B, H, W, 3) in uint8.
    """

    options: dict[str, Any]
    given: Arrays = field(repr=False)  # "image", "mask", "controls.NAME"
    t: NDArray[np.float64] = field(repr=False)
    x: NDArray[np.float32] = field(repr=False)  # (rows + 1, B, C, h, w)
    said: NDArray[np.float32] = field(repr=False)
    images: NDArray[np.uint8] = field(repr=False)

    @property
    def arrays(self) -> Arrays:
        """Return all arrays, by name."""
        return {name: getattr(self, name) for name in WALK} | self.given

    @property
    def asked(self) -> dict[str, Any]:
        """The fields of the request, images and all."""
        return asked(self.options, self.given)


@dataclass(frozen=True)
class Recording:
    """Calls of each component, and a trajectory."""

    cases: tuple[Case, ...]
    trajectory: Trajectory
    scaling_factor: float

    @property
    def small(self) -> "Recording":
        """Return it without what the trajectory shows too (U-Net, controls, decoder, layers of text encoders), and with
        real inputs alone: about a megabyte at 256 pixels.
        """
        kept = [one for one in self.cases if one.component.startswith(("tokenizer", "text_encoder", "vae_encoder"))]
        kept = [one for one in kept if not one.name.startswith("batch")]
        plain = [{name: array for name, array in one.outputs.items() if "." not in name} for one in kept]
        return replace(self, cases=tuple(replace(one, outputs=out) for one, out in zip(kept, plain, strict=True)))

    def to_bytes(self) -> bytes:
        """Return the recording as a NumPy archive."""
        table = [[one.component, one.name, list(one.inputs), list(one.outputs)] for one in self.cases]
        trajectory = self.trajectory
        about: dict[str, Any] = {"cases": table, "options": trajectory.options, "given": list(trajectory.given)}
        about["scaling_factor"] = self.scaling_factor
        arrays: Arrays = {"about": np.array(json.dumps(about)), **trajectory.arrays}
        for i, one in enumerate(self.cases):
            for side in (one.inputs, one.outputs):
                arrays |= {f"{i}.{name}": array for name, array in side.items()}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    def save(self, path: Path) -> None:
        """Write a NumPy archive."""
        with write_atomically(path) as file:
            file.write(self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Read what `save` wrote; an `LdmrtError` where it is anything else, or proves nothing."""
        try:
            arrays = read_archive(plain_file("certificate", path))
            about = parse_json("certificate", path.name, str(arrays["about"]))
            cases = [
                Case(component, name, *({key: arrays[f"{i}.{key}"] for key in side} for side in (inputs, outputs)))
                for i, (component, name, inputs, outputs) in enumerate(about["cases"])
            ]
            given = {name: arrays[name] for name in about["given"]}
            trajectory = Trajectory(about["options"], given, *(arrays[name] for name in WALK))
            read = cls(tuple(cases), trajectory, about["scaling_factor"])
            check_recording(read)
        except (OSError, ValueError, KeyError, TypeError, LdmrtError) as error:
            problem, hint = (
                f"cannot read the stored reference {path}",
                "ldmrt verify BUNDLE --against CHECKPOINT --store",
            )
            raise LdmrtError("certificate", problem, found=first_line(error), hint=hint) from None
        if not read.cases or not len(trajectory.said):
            problem = f"the stored reference {path} has no {'rows' if read.cases else 'cases'}: it proves nothing"
            raise LdmrtError("certificate", problem, hint=STORE)
        return read


def check_recording(reference: Recording) -> None:
    """Refuse what `record` never makes: ValueError says what is wrong."""
    trajectory = reference.trajectory
    for case in reference.cases:
        if not (isinstance(case.component, str) and isinstance(case.name, str)):
            raise ValueError("a case has no name")
        reads = case.component.startswith("tokenizer")
        if reads and (case.inputs.keys(), case.outputs.keys()) != ({"texts"}, {"input_ids"}):
            raise ValueError(f"the case of {case.component} has other arrays than texts and input_ids")
        if not case.outputs or not all(array.size for array in case.outputs.values()):
            raise ValueError(f"the case {case.component}, {case.name} is empty")
        for text in case.inputs["texts"].flat if reads else ():
            str(text).encode()  # ValueError: no text
        if any(array.dtype.kind == "U" for array in (*case.inputs.values(), *case.outputs.values())) is not reads:
            raise ValueError(f"the case {case.component}, {case.name} has another dtype")
    _expect("t", trajectory.t, np.float64, (len(trajectory.said),))
    _expect("x", trajectory.x, np.float32, (len(trajectory.said) + 1, *trajectory.said.shape[1:]))
    _expect("said", trajectory.said, np.float32, trajectory.said.shape)
    options = trajectory.options
    if not isinstance(options, dict) or not options.keys() <= PLAIN.keys():
        raise ValueError("the request is not one that is recorded")
    for name, kind in PLAIN.items():
        if type(options.get(name)) not in kind:
            raise ValueError(f"the request's {name} is {options.get(name)!r:.100}")
    if not 0 < options["steps"] <= STEPS or trajectory.said.ndim != 5:
        raise ValueError(f"{options['steps']} steps in {trajectory.said.ndim} axes")
    sides = (options["height"], options["width"])
    _expect("images", trajectory.images, np.uint8, (trajectory.said.shape[1], *sides, 3))
    for name, image in trajectory.given.items():
        if not (name in ("image", "mask") or name.startswith(CONTROL)) or image.shape[:2] != sides:
            raise ValueError(f"the image {name!r:.100} does not belong to the request")
        _expect(name, image, np.uint8, (*sides, 3)[: 2 if name == "mask" else 3])
    if type(reference.scaling_factor) not in (int, float) or not 0 < reference.scaling_factor < LARGEST:
        raise ValueError(f"scaling factor {reference.scaling_factor!r:.100}")


def _expect(name: str, array: NDArray[Any], dtype: Any, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype}{array.shape}, not {np.dtype(dtype)}{shape}")
