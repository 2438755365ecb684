"""Export, verify and describe an upscale model, for the commands that do so with models that draw."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from ldmrt.runtime.bundle.certificate import Certificate
    from ldmrt.runtime.parity.compare import Comparison


def is_upscale_file(path: Path) -> bool:
    """Tell whether a checkpoint is the file of an upscale model.

    The usual ones are told by their tensors' names; of any other file that is of no kind spandrel is asked, where it is
    installed.
    """
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.files.recognise import UPSCALE, WEIGHTS, kind_of
    from ldmrt.runtime.optional import is_installed

    if path.suffix not in WEIGHTS or not path.is_file():
        return False
    kind = kind_of(path)
    if kind or not is_installed("spandrel"):
        return kind == UPSCALE
    from ldmrt.model.vision.upscale_model import read_descriptor

    try:
        return read_descriptor(path) is not None
    except LdmrtError:
        return False


def accept_only(names: Collection[str]) -> None:
    """Raise an `LdmrtError` for the first option on the command line that upscale models do not have."""
    from ldmrt.runtime.errors import LdmrtError

    context = click.get_current_context()
    options = {str(param.name): param.opts[-1] for param in context.command.params if isinstance(param, click.Option)}
    for name, option in options.items():
        if name not in names and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            expected = ", ".join(options[one] for one in names)
            raise LdmrtError("upscaler", f"{option} is not for upscale models", expected=expected)


def export_file(file: Path, bundle: Path, precision: str, *, verify: bool) -> None:
    """Export the file of an upscale model, and verify the bundle; what `ldmrt export` does with one.

    Raises:
        SystemExit: A difference exceeds its tolerance; the exit code is 1.
    """
    from ldmrt.export.components.component import PRECISIONS
    from ldmrt.export.upscale_model import export_upscale_model
    from ldmrt.model.vision.upscale_model import load_upscale_model
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.optional import check_installed
    from ldmrt.tools.console.progress import console

    from .measure import conclude

    accept_only(("precision", "verify"))
    if precision not in ("fp32", "fp16"):
        raise LdmrtError("upscaler", f"{precision!r:.50} is not for upscale models", expected="fp32 or fp16")
    check_installed("export", "onnx", "onnx_ir", "onnxscript", *(["onnxruntime"] if verify else []))
    model = load_upscale_model(file, PRECISIONS[precision])
    with console.status("exporting"):
        export_upscale_model(model, bundle)
    console.print(f"{model.architecture}, {model.scale} times larger", highlight=False, markup=False)
    click.echo(bundle)
    if verify:
        conclude(verify_bundle(bundle, file, ("onnxruntime",), store=True, stderr=True)[0])


def verify_bundle(
    folder: Path, file: Path | None, backends: Sequence[str] = (), *, store: bool = False, stderr: bool = False
) -> "tuple[Certificate, list[Comparison]]":
    """Compare the bundle of an upscale model with its file, or with the recording of it in the bundle.

    Args:
        folder: The bundle.
        file: The file of the model; None compares with the recording.
        backends: Those that are measured; all that can run it by default.
        store: Stores the certificate in the bundle.
        stderr: Prints the table to the standard error.

    Raises:
        LdmrtError: Either is damaged, or the bundle has no recording.
    """
    from ldmrt.runtime.backends.registry import available_backends, open_engines
    from ldmrt.runtime.bundle.graphs import UPSCALER
    from ldmrt.runtime.bundle.recording import UpscaleRecording
    from ldmrt.runtime.errors import printable
    from ldmrt.runtime.parity.certify import certify
    from ldmrt.runtime.parity.compare import check_engine
    from ldmrt.runtime.parity.tolerances import tolerances
    from ldmrt.runtime.pipeline.autoencoder.upscale_bundle import open_upscale_bundle
    from ldmrt.tools.console import tables

    from .measure import verdict

    bundle, _ = open_upscale_bundle(folder)
    origin = list[str]()
    if file is None:
        reference = UpscaleRecording.load(bundle.reference_file)
        for line in bundle.certificate_issues:
            click.echo(printable(line), err=True)
    else:
        from ldmrt.export.components.component import PRECISIONS
        from ldmrt.export.upscale_model import other_origin_of, record_upscale_model
        from ldmrt.model.vision.upscale_model import load_upscale_model

        reference = record_upscale_model(load_upscale_model(file))
        origin = other_origin_of(bundle, load_upscale_model(file, PRECISIONS[bundle.precision(UPSCALER)]))
    limit, measured = tolerances(bundle)[UPSCALER].limit, list["Comparison"]()
    for backend in backends or available_backends(bundle):
        engines = open_engines(bundle, backend)
        measured.append(check_engine(engines[UPSCALER], UPSCALER, backend, reference.cases, limit))
        engines.close()
    rows = [(one.what, one.backend, *one.summary, verdict(one)) for one in measured]
    tables.show(("component", "backend", "largest difference", "tolerance", ""), rows, stderr=stderr)
    certificate = certify(measured, bundle, reference, origin)
    if store:
        from ldmrt.export.parity.store import store as store_certificate

        store_certificate(bundle, certificate, reference)
    return certificate, measured
