"""The libraries that can run engines of a bundle here."""

from collections.abc import Iterator

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.store import EngineFile, engines, runs_on
from ldmrt.runtime.bundle.engines.targets import TITLES
from ldmrt.runtime.errors import LdmrtError

from .session import MODULES, Session


def open_sessions(bundle: Bundle, backend: str) -> tuple[Session, ...]:
    """Make what the engines of one pipeline share: the sessions of TensorRT and TensorRT-RTX that a backend runs.

    Raises:
        LdmrtError: One that is named is not installed, or there is no GPU.
    """
    if backend == "auto":
        return tuple(sessions(bundle))
    return (Session(backend),) if backend in MODULES else ()


def sessions(bundle: Bundle) -> list[Session]:
    """Return the sessions of backends that have an engine in a bundle for this GPU, TensorRT before TensorRT-RTX."""
    return [session for session in _tried(bundle) if isinstance(session, Session)]


def unused_engines(bundle: Bundle) -> str:
    """State why none of a bundle's engines can run here; empty where one can, or where the bundle has none."""
    built = list(engines(bundle.path)) if bundle.manifest else []
    tried = list(_tried(bundle))
    if not built or any(isinstance(session, Session) for session in tried):
        return ""
    broken = [f"{engine.where} {engine.problem}" for engine in built if isinstance(engine, LdmrtError)]
    reasons = [str(reason) for reason in tried] or broken[:1]
    return f"{len(built)} engine{'s' if len(built) > 1 else ''} cannot run here: {'; '.join(reasons)}"


def _tried(bundle: Bundle) -> Iterator[Session | str]:
    """Yield, for each backend that has engines in a bundle, its session here, or why they cannot run."""
    files = [engine for engine in engines(bundle.path) if isinstance(engine, EngineFile)] if bundle.manifest else []
    for backend, title in TITLES.items():
        if recipes := [file.recipe for file in files if file.recipe.backend == backend]:
            try:
                session = Session(backend)
            except LdmrtError as error:  # no such library, or no GPU
                yield error.problem
                continue
            targets = ", ".join(sorted({recipe.target for recipe in recipes}))
            fits = any(runs_on(recipe, session.gpu) for recipe in recipes)
            yield session if fits else f"{title}: they were built for {targets}, and this GPU is {session.gpu}"
