"""Run `ldmrt export-triton`: write a bundle as a model repository of Triton."""

from pathlib import Path
from typing import Any

import click

from ldmrt.serve.jobs.defaults import WAITING
from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.drawing import with_opening


@click.command("export-triton")
@click.argument("bundle")
@click.argument("repo", type=Output(folder=True))
@click.option("--force", is_flag=True, help="Replace models of the same names that REPO has.")
@click.option("--waiting", type=click.IntRange(min=1), default=WAITING, show_default=True,
              help="Requests that may wait; more are refused.")  # fmt: skip
@click.option("--rows", type=click.IntRange(min=1),
              help="Rows of a call of the U-Net at the model's own size; measured when Triton loads the model by "
              "default.")  # fmt: skip
@with_opening
def export_triton(
    bundle: str, repo: Path, force: bool, waiting: int, rows: int | None, opening: dict[str, Any]
) -> None:
    """Write BUNDLE, a folder or a name on the hub, also as NAME=BUNDLE, into REPO, a model repository of Triton.

    REPO/ldmrt_NAME draws: a model of Triton's Python backend, whose Python needs ldmrt, with the bundle in the folder
    of its version. Requests share the calls of the U-Net. REPO/NAME_text_encoder and REPO/NAME_vae_decoder are plain
    ONNX models of these networks. Other models in REPO stay as they are.

    Files of the bundle are copied, so REPO is whole by itself. The options below are
    parameters in REPO/ldmrt_NAME/config.pbtxt; with --backend onnxruntime-cuda the plain models run on the GPU too.

    Example: ldmrt export-triton out/emoji64 out/models
    """
    from ldmrt.runtime.bundle.hub import local_bundle
    from ldmrt.serve.models.naming import named
    from ldmrt.serve.triton.repository import write_repository

    ((name, path),) = named((bundle,)).items()
    written = write_repository(local_bundle(path), name, repo, opening, rows=rows, waiting=waiting, replace=force)
    for model in written:
        click.echo(repo / model)
