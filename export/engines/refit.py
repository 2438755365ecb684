"""Replaces the weights of engines, such as by those with a LoRA merged: TensorRT sets them by name, without a build.

New engines are written into the bundle that has the weights; the engines that were read stay as they are.
"""

import hashlib
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ldmrt.runtime.backends.trt.session import Refused, Session, must
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import REFIT, Recipe
from ldmrt.runtime.bundle.engines.store import (
    FOLDER,
    EngineFile,
    engines,
    model_digests,
    rebuild,
    runs_on,
    with_refit,
    write_engine,
)
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.lock import bundle_lock
from ldmrt.runtime.nearest import check_known

from .compiler import check_refit

KEEPS = "INCLUDE_REFIT"  # of SerializationFlag, since TensorRT 10.14
DIGEST = "weights_sha256"  # in an engine's sidecar


@dataclass(frozen=True)
class Refitted:
    """An engine that is now there, and how it came."""

    engine: EngineFile
    how: str
    new: bool = True
    seconds: float = 0.0


def refit(bundle: Bundle, source: Bundle, backend: str, only: Collection[str] = ()) -> Iterator[Refitted]:
    """Refit the engines of `source` with the weights of `bundle`, and yield after each.

    Engines with equal weights are copied. Whatever happens, an engine is there whole or it is not there.

    Args:
        bundle: The bundle that has the weights and takes the engines.
        source: The bundle whose engines are read; it may be the same, exported again since they were built.
        backend: "tensorrt"; TensorRT-RTX cannot replace weights without a GPU.
        only: The components; all where it is empty.

    Raises:
        LdmrtError: The backend cannot refit, a graph differs, or an engine was not built for it.
    """
    check_refit(backend, "--backend")
    check_known("--components", only, bundle.graphs)
    session = Session(backend)
    with bundle_lock(bundle.path):
        bundle.check_unchanged()
        yield from _refit(bundle, source, session, only)


def _refit(bundle: Bundle, source: Bundle, session: Session, only: Collection[str]) -> Iterator[Refitted]:
    wished = _wished(bundle, source, session, only)
    there = {one.folder.name: one for one in engines(bundle.path) if isinstance(one, EngineFile)}
    for recipe, one in wished:
        begin = time.perf_counter()
        if recipe.key in there and not there[recipe.key].damaged:
            yield Refitted(there[recipe.key], "reused", new=False)
            continue
        if recipe == one.recipe:
            plan, measured, how = one.read(source), one.measured, "of the same weights, copied"
        else:
            plan, digest = _replaced(session, one, source, bundle)
            took = {"build_peak": None, "seconds": round(time.perf_counter() - begin, 3)}
            measured = {**one.measured, **took, DIGEST: digest, "refitted_from": one.folder.name}
            how = f"weights replaced, sha256 {digest[:16]}"
        made = write_engine(bundle.path / FOLDER, recipe, plan, measured)
        yield Refitted(made, how, seconds=time.perf_counter() - begin)


def _wished(
    bundle: Bundle, source: Bundle, session: Session, only: Collection[str]
) -> list[tuple[Recipe, EngineFile]]:  # fmt: skip
    """List what a build would make in the bundle, each with the engine whose weights shall be replaced."""
    found: dict[str, tuple[Recipe, EngineFile]] = {}
    for one in engines(source.path):
        if isinstance(one, LdmrtError) or one.recipe.component not in (only or bundle.graphs):
            continue
        old = one.recipe
        if (old.backend, old.version) != (session.backend, session.version) or not runs_on(old, session.gpu):
            continue
        graph, weights = model_digests(bundle, old.component)
        new = replace(old, graph=graph, weights=weights)
        if new != old and REFIT not in old.flags:
            problem = f"engine {one.folder.name} was built without --refit"
            raise LdmrtError(old.component, problem, hint=with_refit(rebuild(source, old)))
        if graph != old.graph:  # small constants stand in it: a LoRA changes none of them
            problem = f"{bundle.path} has another model.onnx than engine {one.folder.name} was made of"
            expected = "the same graph with other weights"
            raise LdmrtError(old.component, problem, expected=expected, hint=rebuild(bundle, old))
        found.setdefault(new.key, (new, one))
    if not found:
        problem = f"{source.path} has no engine of {session.title} {session.version} for {session.gpu}"
        hint = f"ldmrt build {source.path} --backend {session.backend} --refit"
        raise LdmrtError("refit", problem, hint=hint)
    return list(found.values())


def weights_sha256(recipe: Recipe, plan: bytes, path: Path) -> str:
    """Return the checksum of the weights of a plan: every name with the numbers that the ONNX file has for it.

    Raises:
        LdmrtError: The plan cannot be refitted from the ONNX file at `path`, of which it was just built.
    """
    session = Session(recipe.backend)
    with session.explained(recipe.component, "its weights cannot be replaced", hint="ldmrt build without --refit"):
        engine = must(session.runtime.deserialize_cuda_engine(plan), "deserialize_cuda_engine")
        return _given(session, engine, path)[1]


def _replaced(session: Session, file: EngineFile, source: Bundle, bundle: Bundle) -> tuple[bytes, str]:
    """Return a plan with the bundle's weights, and their checksum.

    The new plan is loaded once to check that the same weights can be replaced again. TensorRT does not return weights,
    so only a run can show that it computes with them.
    """
    problem, runtime = f"engine {file.folder.name} cannot be refitted", session.runtime
    path = bundle.model(file.recipe.component)
    with session.explained(file.recipe.component, problem, hint=rebuild(bundle, file.recipe)):
        engine = must(runtime.deserialize_cuda_engine(file.read(source)), "deserialize_cuda_engine")
        given, digest = _given(session, engine, path)
        must(given[0].refit_cuda_engine(), "refit_cuda_engine")
        config, flags = engine.create_serialization_config(), session.trt.SerializationFlag
        if KEEPS in flags.__members__:
            must(config.set_flag(getattr(flags, KEEPS)), f"set_flag of {KEEPS}")
        plan = must(engine.serialize_with_config(config), "serialize_with_config")
        del given, engine  # the GPU need not hold both
        again = must(runtime.deserialize_cuda_engine(plan), "deserialize_cuda_engine of what was made")
        if _given(session, again, path)[1] != digest:
            raise Refused("what was made takes other weights")
    return plan, digest


def _given(session: Session, engine: Any, path: Path) -> tuple[tuple[Any, object], str]:
    """Hand all weights of an ONNX file to an engine, without applying them yet.

    Returns:
        Refitter and parser, which own the weights' memory and must live until they are applied; and the checksum.
    """
    if not engine.refittable:
        raise Refused("it is not refittable")
    refitter = session.trt.Refitter(engine, session.log)
    parser = session.trt.OnnxParserRefitter(refitter, session.log)  # knows how the builder renamed constants
    must(parser.refit_from_file(str(path)), f"refit_from_file of {path}")
    if missing := refitter.get_missing_weights():
        raise Refused(f"{len(missing)} weights are missing, such as {missing[0]}")
    digest = hashlib.sha256()
    for name in sorted(refitter.get_all_weights()):
        value = refitter.get_named_weights(name).numpy()
        if not isinstance(value, np.ndarray):  # TensorRT's own type comes back instead
            raise Refused(f"NumPy has no {value.dtype}, of which {name} is, so nothing could be verified")
        if not value.size:
            raise Refused(f"{name} was not given")
        digest.update(f"{name} {value.dtype} {value.size}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return (refitter, parser), digest.hexdigest()
