"""Load the LoRAs of a service into its models."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldmrt.runtime.bundle.hub import local_bundle
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.lora.reading import open_lora
from ldmrt.runtime.pipeline.infotext.record import run_of
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline

SUFFIX = ".safetensors"
log = logging.getLogger("ldmrt.serve")


def lora_files(given: Sequence[str]) -> dict[str, Path]:
    """Return files by the names that requests call them: FILE or NAME=FILE, or a FOLDER with all files below it.

    Raises:
        LdmrtError: A folder has none, or two have one name.
    """
    found = dict[str, Path]()
    for text in given:
        name, equals, rest = text.partition("=")
        named = bool(equals) and "/" not in name and not Path(text).exists()
        path = Path(rest if named else text)
        files = [path] if named or not path.is_dir() else sorted(path.rglob(f"*{SUFFIX}"))
        if not files:
            raise LdmrtError("--lora", f"{path} holds no LoRA", expected=f"files that end in {SUFFIX}")
        for file in files:
            own = name if named else file.stem
            if own in found:
                problem, hint = "two LoRAs have one name", f"--lora NAME={file}"
                raise LdmrtError("--lora", problem, expected=str(found[own]), found=str(file), hint=hint)
            found[own] = file
    return found


def open_with_loras(path: str, *, files: Mapping[str, Path], any_fits: bool, **opening: Any) -> Pipeline:
    """Open a bundle with those LoRAs that fit it, and with what the records of its images share.

    Args:
        path: The bundle's folder, or its name on the hub.
        files: The LoRAs by name.
        any_fits: Whether one that does not fit is logged, as another model may be meant; else it is refused.
        opening: Arguments of `open_pipeline`.

    Raises:
        LdmrtError: The bundle cannot be opened, or a LoRA cannot be loaded.
    """
    pipeline = open_pipeline(path, **opening)
    try:
        for name, file in files.items():
            if any_fits:
                open_lora(file)  # one that cannot be read fits no model
            _load(pipeline, name, file, path if any_fits else None)
        loras = pipeline.loras.record(pipeline.loras.names) or None
        return replace(pipeline, record=run_of(local_bundle(path), opening, loras=loras))
    except BaseException:
        pipeline.close()
        raise


def _load(pipeline: Pipeline, name: str, file: Path, model: str | None) -> None:
    """Load a LoRA; an error is logged alone where a model of several is named, as another may be meant."""
    try:
        pipeline.load_lora(file, name)
    except LdmrtError as error:
        if model is None:
            raise
        log.info("%s takes no LoRA %s: %s", model, name, error)


def check_used(files: Collection[str], models: Mapping[str, Pipeline]) -> None:
    """Refuse a LoRA that none of several models takes."""
    for name in files:
        if not any(name in pipeline.loras.names for pipeline in models.values()):
            found, hint = ", ".join(models), "the log has the reasons"
            raise LdmrtError("--lora", f"no model takes {name}", found=found, hint=hint)
