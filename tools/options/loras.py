"""The option that loads LoRAs beside a bundle."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .checkpoint import Weighed, WeighedFile

if TYPE_CHECKING:
    from ldmrt.runtime.files.reading import JsonObject
    from ldmrt.runtime.pipeline.pipeline import Pipeline

LORA = click.option(
    "--lora",
    "loras",
    type=Weighed(),
    multiple=True,
    help="Draw with a LoRA; with --prompt-syntax a1111, <lora:NAME:WEIGHT> in a prompt replaces its weight.",
)


def weights_of(loras: Sequence[WeighedFile]) -> dict[str, float] | None:
    """Return the weights of LoRAs by their names, which are those of their files; None where there is none.

    Raises:
        LdmrtError: Two have one name.
    """
    from ldmrt.runtime.errors import LdmrtError

    weights = {lora.path.stem: lora.weight for lora in loras}
    if len(weights) < len(loras):
        problem, found = "two LoRAs have one name", ", ".join(lora.path.stem for lora in loras)
        raise LdmrtError("--lora", problem, expected="files of different names", found=found)
    return weights or None


def refuse_with_ray(loras: Sequence[object], ray: object) -> None:
    """Refuse LoRAs beside the replicas of `--ray`.

    Raises:
        LdmrtError: Both are asked for.
    """
    from ldmrt.runtime.errors import LdmrtError

    if loras and ray is not None:
        problem, hint = "the replicas of --ray load no LoRA", "a bundle with it merged: ldmrt export --lora"
        raise LdmrtError("--lora", problem, expected="only one of them", hint=hint)


def load_loras(pipeline: "Pipeline", loras: Sequence[WeighedFile]) -> "JsonObject | None":
    """Load LoRAs into a pipeline, and return the record of their files by name; None where there is none."""
    names = [pipeline.load_lora(lora.path) for lora in loras]
    return pipeline.loras.record(names) or None


def stated_loras(loras: Sequence[WeighedFile]) -> list[tuple[str, float, str]]:
    """Return LoRAs as a run of several hours states them: the path, its weight, and the hash of the file there."""
    from ldmrt.runtime.files.lora.reading import USUAL
    from ldmrt.runtime.files.reading import find_file, sha256

    return [(str(lora.path), lora.weight, sha256(find_file("lora", lora.path, USUAL))) for lora in loras]
