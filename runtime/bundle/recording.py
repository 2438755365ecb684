"""Recordings of the reference: PyTorch computes them once, and any backend is compared with them, without torch."""

import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import BundleError, LdmrtError, first_line
from ldmrt.runtime.files.numpy_archive import read_archive
from ldmrt.runtime.files.reading import JsonObject, parse_json, plain_file
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.tensors import Array, Arrays

from .graphs import DECODER_PREVIEW, ENCODER, IMAGE_ENCODER, IMAGE_PROJECTION, SAFETY_CHECKER, UPSCALER
from .stages import PIXELS, Stage

CONTROL = "controls."
IMAGES = ("image", "mask", "ip_adapter_image")  # of a request, by their short words
# Components, by how their names begin, that the trajectory does not show.
NOT_DRAWN = ("tokenizer", "text_encoder", IMAGE_ENCODER, IMAGE_PROJECTION, ENCODER, DECODER_PREVIEW, SAFETY_CHECKER)
WALK = ("t", "x", "said", "images")  # the arrays of a trajectory, by their names in the archive
STORE = "ldmrt verify BUNDLE --against CHECKPOINT --store"
STEPS = 1000  # of a recorded request, at most
LARGEST = 1e9  # of a scaling factor
# The fields of a recorded request, and those of models that draw classes, or that may skip layers.
PLAIN = {"prompt": (str,), "seed": (int,), "width": (int,), "height": (int,), "steps": (int,), "guidance": (float, int)}
FURTHER = {"class_labels": (int,), "skip_guidance_layers": (list,)}


@dataclass(frozen=True)
class Case:
    """Records one call of a component: its inputs and outputs."""

    component: str
    name: str  # "prompt", "row 10", "batch 3 at 64x72"
    inputs: Arrays = field(repr=False)
    outputs: Arrays = field(repr=False)


def request_fields(options: JsonObject, given: Arrays) -> JsonObject:
    """Return the fields of a recorded request, ready for `Request`.

    Args:
        options: The fields that are text or numbers, those of `PLAIN` and `FURTHER`.
        given: The images of the request, uint8, those of `IMAGES` and "controls.NAME".
    """
    controls = {name.removeprefix(CONTROL): image for name, image in given.items() if name.startswith(CONTROL)}
    return {**options, **{name: given[name] for name in IMAGES if name in given}, "controls": controls}


@dataclass(frozen=True)
class Trajectory:
    """Images as the reference computed them: their request, the latents and prediction of every row, and the images."""

    options: JsonObject  # the fields of the request, but for its images
    given: Arrays = field(repr=False)  # the images of the request: those of `IMAGES`, "controls.NAME"
    t: NDArray[np.float64] = field(repr=False)  # (rows,), model time
    x: NDArray[np.float32] = field(repr=False)  # (rows + 1, B, C, h, w), latents before each row and after the last
    said: NDArray[np.float32] = field(repr=False)  # (rows, B, C, h, w), predictions after guidance, or 2C of a variance
    images: NDArray[np.uint8] = field(repr=False)  # (B, H, W, 3), or 6 with a depth

    @property
    def arrays(self) -> Arrays:
        """Return all arrays, by their names in the archive."""
        return {name: getattr(self, name) for name in WALK} | self.given

    @property
    def request_fields(self) -> JsonObject:
        """Return the fields of the request, with its images."""
        return request_fields(self.options, self.given)


@dataclass(frozen=True)
class Recording:
    """Calls of each component, and a trajectory."""

    cases: tuple[Case, ...]
    trajectory: Trajectory
    scaling_factor: float

    @property
    def options(self) -> JsonObject:
        """Return the fields of the recorded request."""
        return self.trajectory.options

    @property
    def small(self) -> "Recording":
        """Return the recording that a bundle stores, about a megabyte at 256 pixels.

        Cases that the trajectory shows too (U-Net, controls, decoder), layers of text encoders and invented inputs are
        dropped.
        """
        cases = [case for case in self.cases if case.component.startswith(NOT_DRAWN)]
        cases = [case for case in cases if not case.name.startswith("batch")]
        plain = [{name: array for name, array in case.outputs.items() if "." not in name} for case in cases]
        return replace(self, cases=tuple(replace(case, outputs=out) for case, out in zip(cases, plain, strict=True)))

    def to_bytes(self) -> bytes:
        """Return the recording as a NumPy archive."""
        table = [[case.component, case.name, list(case.inputs), list(case.outputs)] for case in self.cases]
        trajectory = self.trajectory
        about = {
            "cases": table,
            "options": trajectory.options,
            "given": list(trajectory.given),
            "scaling_factor": self.scaling_factor,
        }
        arrays: Arrays = {"about": np.array(json.dumps(about)), **trajectory.arrays}
        for i, case in enumerate(self.cases):
            for side in (case.inputs, case.outputs):
                arrays |= {f"{i}.{name}": array for name, array in side.items()}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    def save(self, path: Path) -> None:
        """Write a NumPy archive."""
        with write_atomically(path) as file:
            file.write(self.to_bytes())

    @classmethod
    def load(cls, path: Path, stage: Stage) -> "Recording":
        """Read a file that `save` wrote of a model of this stage.

        Raises:
            BundleError: The file is no recording, is damaged, or is empty and so proves nothing.
        """
        try:
            arrays = read_archive(plain_file("certificate", path))
            about = parse_json("certificate", path.name, str(arrays["about"]))
            cases = [
                Case(component, name, *({key: arrays[f"{i}.{key}"] for key in side} for side in (inputs, outputs)))
                for i, (component, name, inputs, outputs) in enumerate(about["cases"])
            ]
            images = {name: arrays[name] for name in about["given"]}
            trajectory = Trajectory(about["options"], images, *(arrays[name] for name in WALK))
            recording = cls(tuple(cases), trajectory, about["scaling_factor"])
            check_recording(recording, stage.enlarges)
        except (OSError, ValueError, KeyError, TypeError, LdmrtError) as error:
            problem = f"cannot read the stored reference {path}"
            raise BundleError("certificate", problem, found=first_line(error), hint=STORE) from None
        lacks_cases = not recording.cases and stage.space.codec != PIXELS  # where the trajectory shows the one network
        if lacks_cases or not len(trajectory.said):
            missing = "cases" if lacks_cases else "rows"
            problem = f"the stored reference {path} has no {missing}: it proves nothing"
            raise BundleError("certificate", problem, hint=STORE)
        return recording


@dataclass(frozen=True)
class UpscaleRecording:
    """Calls of the one network of an upscale model."""

    cases: tuple[Case, ...]

    @property
    def options(self) -> JsonObject:
        """Return no fields: there is no request."""
        return {}

    @property
    def small(self) -> "UpscaleRecording":
        """Return the recording that a bundle stores, which is the whole."""
        return self

    def to_bytes(self) -> bytes:
        """Return the recording as a NumPy archive."""
        arrays: Arrays = {f"{i}.{side}": array for i, case in enumerate(self.cases) for side, array in _sides(case)}
        arrays["names"] = np.array([case.name for case in self.cases])
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def load(cls, path: Path) -> "UpscaleRecording":
        """Read what `to_bytes` returned.

        Raises:
            BundleError: The file is no such recording, or is damaged.
        """
        try:
            arrays = read_archive(plain_file("certificate", path))
            cases = tuple(
                Case(UPSCALER, str(name), *({side: arrays[f"{i}.{side}"]} for side in ("image", "enlarged")))
                for i, name in enumerate(arrays["names"].reshape(-1))
            )
            for case in cases:
                _check_case(case)
                for side, array in _sides(case):
                    _expect(side, array, np.float32, (*array.shape[:1], 3, *array.shape[2:4]))
            if not cases:
                raise ValueError("it has no cases")
        except (OSError, ValueError, KeyError, TypeError, LdmrtError) as error:
            problem = f"cannot read the stored reference {path}"
            raise BundleError("certificate", problem, found=first_line(error), hint=STORE) from None
        return cls(cases)


def _sides(case: Case) -> tuple[tuple[str, Array], ...]:
    """Return what an upscale model was given, and what it returned."""
    return ("image", case.inputs["image"]), ("enlarged", case.outputs["enlarged"])


def check_recording(reference: Recording, enlarges: int = 1) -> None:
    """Refuse a recording that the reference cannot have made; the ValueError states what is wrong."""
    trajectory = reference.trajectory
    for case in reference.cases:
        _check_case(case)
    rows = trajectory.said.shape
    if trajectory.said.ndim != 5 or trajectory.x.ndim != 5:
        raise ValueError(f"latents in {trajectory.x.ndim} axes, and predictions in {trajectory.said.ndim}")
    channels = trajectory.x.shape[2]
    variance = trajectory.said.shape[2] == 2 * channels  # is predicted too
    _expect("t", trajectory.t, np.float64, (len(trajectory.said),))
    _expect("x", trajectory.x, np.float32, (len(trajectory.said) + 1, rows[1], channels, *rows[3:]))
    _expect("said", trajectory.said, np.float32, (*rows[:2], channels * (1 + variance), *rows[3:]))
    options = trajectory.options
    if not isinstance(options, dict) or not options.keys() <= PLAIN.keys() | FURTHER.keys():
        raise ValueError("the request is not one that is recorded")
    for name, kind in (PLAIN | {name: kind for name, kind in FURTHER.items() if name in options}).items():
        if type(options.get(name)) not in kind:
            raise ValueError(f"the request's {name} is {options.get(name)!r:.100}")
    if not 0 < options["steps"] <= STEPS:
        raise ValueError(f"{options['steps']} steps")
    sides = (options["height"], options["width"])
    colours = 6 if trajectory.images.shape[-1:] == (6,) else 3  # with a depth
    _expect("images", trajectory.images, np.uint8, (rows[1], *sides, colours))
    for name, image in trajectory.given.items():
        own = tuple(side // enlarges for side in sides) if name == "image" else sides
        if not (name in IMAGES or name.startswith(CONTROL)) or image.shape[:2] != own:
            raise ValueError(f"the image {name!r:.100} does not belong to the request")
        _expect(name, image, np.uint8, (*own, 3)[: 2 if name == "mask" else 3])
    if type(reference.scaling_factor) not in (int, float) or not 0 < reference.scaling_factor < LARGEST:
        raise ValueError(f"scaling factor {reference.scaling_factor!r:.100}")


def _check_case(case: Case) -> None:
    """Refuse a case without outputs, and texts anywhere but in the inputs of a tokenizer."""
    if not (isinstance(case.component, str) and isinstance(case.name, str)):
        raise ValueError("a case has no name")
    reads = case.component.startswith("tokenizer")
    if reads and (set(case.inputs), set(case.outputs)) != ({"texts"}, {"input_ids"}):
        raise ValueError(f"the case of {case.component} has other arrays than texts and input_ids")
    if not case.outputs or not all(array.size for array in case.outputs.values()):
        raise ValueError(f"the case {case.component}, {case.name} is empty")
    for text in case.inputs["texts"].flat if reads else ():
        str(text).encode()  # ValueError: no text
    if any(array.dtype.kind == "U" for array in (*case.inputs.values(), *case.outputs.values())) is not reads:
        raise ValueError(f"the case {case.component}, {case.name} has another dtype")


def _expect(name: str, array: Array, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Refuse an array of another dtype or shape."""
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype}{array.shape}, not {np.dtype(dtype)}{shape}")
