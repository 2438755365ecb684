"""Write a bundle as a model repository of Triton: one model that draws, and plain ONNX models of its parts."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldmrt.runtime.backends.registry import check_compute, check_name
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.contents import check_inside, is_name
from ldmrt.runtime.bundle.external_data import locations
from ldmrt.runtime.bundle.graphs import DECODER, cuda_file
from ldmrt.runtime.errors import BundleError, LdmrtError
from ldmrt.runtime.files.swap import recover, replace_folder
from ldmrt.runtime.files.writing import temporary_folder
from ldmrt.runtime.pipeline.opening import decoding_of

from .config_text import Message, onnx_model, python_model, text_of
from .model import BUNDLE, READ, ROWS, WAITING
from .tensors import OUTPUTS, inputs_of

CONFIG, VERSION, PREFIX = "config.pbtxt", "1", "ldmrt_"
CUDA = "onnxruntime-cuda"  # the backend whose plain ONNX models run on the GPU
MODEL = '''"""Draw with the bundle beside this file, in Triton's Python backend, whose Python needs ldmrt."""

from pathlib import Path

import triton_python_backend_utils as pb_utils

from ldmrt.serve.triton.model import Model


class TritonPythonModel(Model):
    """Hands Triton's requests to ldmrt, which answers each when its images are drawn."""

    folder, utils = Path(__file__).parent, pb_utils
'''


def write_repository(
    folder: Path,
    name: str,
    repository: Path,
    opening: Mapping[str, Any],
    *,
    rows: int | None = None,
    waiting: int,
    replace: bool = False,
) -> list[str]:
    """Write the models of a bundle into a repository; its other models stay as they are.

    Each model is whole or not there. Files are copies: `onnx` reads no weights from one with several names.

    Args:
        folder: The bundle.
        name: The drawing model is named ldmrt_NAME, and the plain ones NAME_text_encoder and NAME_vae_decoder.
        repository: The model repository; a new folder, or one that is there.
        opening: Arguments of `open_pipeline`, which become parameters of the drawing model.
        rows: Rows of a call of the U-Net; measured where Triton loads the model by default.
        waiting: How many requests may wait.
        replace: Whether models of the same names are replaced.

    Returns:
        The names of the models, the drawing one last.

    Raises:
        LdmrtError: The bundle is damaged, an argument is invalid, or a model is there already.
    """
    if not is_name(name):
        raise LdmrtError("name", f"{name!r:.100} cannot name a model", expected="letters, digits, _, - and .",
                         hint="NAME=BUNDLE")  # fmt: skip
    bundle = Bundle.open(folder)
    if not bundle.manifest:
        problem = f"{folder} has no manifest, so its tensors are unknown"
        raise BundleError("bundle", problem, hint=f"ldmrt export CHECKPOINT {folder}")
    _check(bundle, opening)
    values = {BUNDLE: BUNDLE, **{key: _text(opening[key]) for key in READ}, ROWS: _text(rows), WAITING: _text(waiting)}
    drawing = PREFIX + name
    config = python_model(drawing, inputs_of(bundle.stage, bundle.components), OUTPUTS, values)
    parts = dict(_parts(bundle, name, gpu=opening["backend"] == CUDA))
    names = [*(model["name"] for model in parts.values()), drawing]
    for model in names:
        recover(repository / str(model))
        if not replace and os.path.lexists(repository / str(model)):
            raise LdmrtError("repository", f"{repository} has a model {model}", hint="--force, or another NAME=BUNDLE")
    repository.parent.mkdir(parents=True, exist_ok=True)
    there = repository.is_dir()
    with temporary_folder(repository / drawing if there else repository) as work:
        for file, model in parts.items():
            _write_onnx(bundle, file, model, work / str(model["name"]))
        version = _begin(work / drawing, config)
        (version / "model.py").write_text(MODEL, encoding="utf-8")
        _copy(folder, version / BUNDLE)
        work.chmod(0o755)
        if there:
            for model in names:
                replace_folder(work / str(model), repository / str(model))
        else:
            replace_folder(work, repository)
    return [str(model) for model in names]


def _check(bundle: Bundle, opening: Mapping[str, Any]) -> None:
    """Refuse arguments with which the bundle could not be opened, wherever Triton runs."""
    check_name(opening["backend"])
    check_compute(opening["backend"], opening["compute"])
    names = ("tile", "tile_passes", "on_overflow", "low_memory", "keep_optimized")
    decoding_of(**{name: opening[name] for name in names}).cells(bundle.stage.space.factor, ())


def _text(value: object) -> str:
    """Return an argument as a parameter's text; empty for none."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _parts(bundle: Bundle, name: str, *, gpu: bool) -> Iterator[tuple[Path, Message]]:
    """Yield the ONNX files that plain models run, the text encoders' and the decoder's, each with its configuration.

    On a GPU it is the file for ONNX Runtime's CUDA provider, where there is one: the other's operators are slow there.
    """
    for component in bundle.components:
        if component.startswith("text_encoder") or component == DECODER:
            file = bundle.model(component)
            twin = cuda_file(file)
            chosen = twin if gpu and twin in bundle.models(component) else file
            yield chosen, onnx_model(f"{name}_{component}", *bundle.specs(component), gpu=gpu)


def _begin(folder: Path, config: Message) -> Path:
    """Write the configuration of a model, and return the folder of its version."""
    version = folder / VERSION
    version.mkdir(parents=True)
    (folder / CONFIG).write_text(text_of(config), encoding="utf-8")
    return version


def _write_onnx(bundle: Bundle, file: Path, config: Message, folder: Path) -> None:
    """Write a plain model: its graph, and beside it the files of its weights under the names that the graph has."""
    version = _begin(folder, config)
    shutil.copyfile(file, version / "model.onnx")
    for location in locations(file.parent.name, file):
        place = version / location
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.contents.file(f"{file.parent.name}/{location.removeprefix('./')}"), place)


def _copy(folder: Path, place: Path) -> None:
    """Copy the files of a bundle under a new folder, engines and later stages too, without temporary ones.

    Raises:
        BundleError: A link leads out of the bundle.
    """
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        check_inside(folder, path)
        (place / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / relative)
