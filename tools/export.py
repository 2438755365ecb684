"""`ldmrt export`: a checkpoint to a bundle."""

import time
from pathlib import Path

import click


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
def export(checkpoint: Path, bundle: Path) -> None:
    """Turn CHECKPOINT, a folder in diffusers' layout, into BUNDLE, a folder of ONNX files with a manifest.

    Components that have not changed since the last export to BUNDLE are reused. BUNDLE changes only when all are done.

    Example: ldmrt export model/pretrained/emoji64 out/emoji64
    """
    from ldmrt.export import export_bundle
    from ldmrt.model import load

    from .progress import console

    begin = time.perf_counter()
    loaded = load(checkpoint)
    with console.status("exporting") as status:
        for done in export_bundle(loaded, bundle):
            seconds, begin = time.perf_counter() - begin, time.perf_counter()
            how = "reused: weights, config and versions are the same" if done.reused else f"exported in {seconds:.1f} s"
            console.print(f"{done.component}: {how}", highlight=False)
            status.update("exporting")
    click.echo(bundle)
