"""What is measured of precisions narrower than float32: ranges of activations, islands of float32, the time gained."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from .runnable import Runnable

if TYPE_CHECKING:
    from ldmrt.runtime.backends.openvino.ranges import Ranges
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.certificate import Certificate, Islands
    from ldmrt.runtime.bundle.recording import Recording
    from ldmrt.runtime.parity.compare import Comparison
    from ldmrt.runtime.pipeline.pipeline import Pipeline


def precisions(
    backends: tuple[str, ...], compute: str, before: "Certificate | None"
) -> "list[tuple[str, tuple[str, ...]]]":
    """List the precisions that a stored certificate is to hold, with the backends that are measured in each.

    It holds float32 first, then the narrower ones that the bundle's certificate holds already, then the one that is
    asked for: none takes the place of another. All backends that it holds in the latter are measured again.

    Args:
        backends: Those that are asked for; empty for all that can run.
        compute: The precision that is asked for.
        before: The bundle's certificate; None where it has none.
    """
    from ldmrt.runtime.backends.openvino.devices import COMPUTES
    from ldmrt.runtime.backends.registry import BACKENDS, chooses_precision
    from ldmrt.runtime.bundle.certificate import backend_row

    rows = {} if before is None else before.islands
    held = [(backend, one) for backend in BACKENDS for one in COMPUTES if backend_row(backend, one) in rows]
    chosen = [("fp32", backends)] + [(one, (backend,)) for backend, one in held if one != compute]
    if compute != "fp32":
        asked = tuple(name for name in backends if chooses_precision(name)) or backends
        others = (backend for backend, one in held if one == compute and backend not in asked)
        chosen.append((compute, (*asked, *others) if asked else ()))
    return chosen


def ranges_for_int8(bundle: "Bundle", reference: "Recording", backend: str) -> "dict[str, Ranges]":
    """Measure the ranges of activations with which a backend computes a bundle in int8.

    Args:
        bundle: The opened bundle.
        reference: What its checkpoint computed.
        backend: A backend of OpenVINO's.
    """
    from ldmrt.export.precision.calibrate import calibrate
    from ldmrt.tools.console.progress import console

    with console.status("calibrating int8 on the recorded rows"):
        return calibrate(bundle, reference, backend)


def with_islands(
    bundle: "Bundle", reference: "Recording", narrow: Runnable, tables: "Mapping[str, Ranges]"
) -> "tuple[Runnable, Islands]":
    """Find the modules that a backend has to compute in float32 so that the rest may be narrow; let it do so.

    Args:
        bundle: The opened bundle.
        reference: What its checkpoint computed.
        narrow: A backend of OpenVINO's and a precision below float32.
        tables: The ranges of activations in each component, for int8; empty for other precisions.

    Returns:
        The backend with these islands, and the islands of each component that needs any.
    """
    from ldmrt.runtime.backends.registry import BackendSettings, open_engines
    from ldmrt.runtime.parity.in_openvino import islands_of
    from ldmrt.runtime.pipeline.opening import open_pipeline
    from ldmrt.tools.console.progress import console

    found: dict[str, dict[str, str]] = {}
    with console.status(f"looking for what {narrow.name} computes too coarsely") as status:
        for component, modules in islands_of(bundle, reference, narrow.backend, narrow.compute, tables):
            status.update(f"looked at {component}")
            found |= {component: modules} if modules else {}
    for component, modules in found.items():
        for path, why in modules.items():
            click.echo(f"{component}: {path or 'all of it'} stays in fp32 on {narrow.name}; {why}", err=True)

    def opener() -> "Pipeline":
        settings = BackendSettings(compute=narrow.compute, islands=found, ranges=tables)
        exact = open_pipeline(bundle.path, narrow.backend, check=False)
        return replace(exact, engines=open_engines(bundle, narrow.backend, settings))

    return narrow._replace(open=opener), found


def gains(bundle: "Bundle", narrow: Runnable, pipeline: "Pipeline", reference: "Recording") -> "Iterator[Comparison]":
    """Yield what a narrow precision gains in time; nothing for a backend in the bundle's own."""
    from ldmrt.runtime.parity.time_gain import time_gains
    from ldmrt.runtime.pipeline.opening import open_pipeline

    if narrow.compute != "fp32":
        exact = open_pipeline(bundle.path, narrow.backend, check=False)
        yield from time_gains(pipeline, exact, narrow.name, reference.trajectory)
        exact.close()
