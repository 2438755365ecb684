"""Says which backends replace weights of a network that is open, as LoRAs at run time do."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import REFIT
from ldmrt.runtime.bundle.engines.store import EngineFile, engines, rebuild, runs_on, with_refit
from ldmrt.runtime.errors import LdmrtError

from .ort.engine import PROVIDERS

if TYPE_CHECKING:
    from .trt.session import Session

MERGE = "ldmrt export CHECKPOINT BUNDLE --lora FILE:WEIGHT"
REASONS = {
    "tensorrt-rtx": "TensorRT-RTX compiles an engine with its weights, and replaces none",
    "openvino": "OpenVINO compiles a network with its weights, and replaces none",
}


def check_replaceable(bundle: Bundle, backend: str, sessions: "Sequence[Session]", *, low_memory: bool) -> None:
    """Refuse to replace weights where a backend cannot.

    Args:
        bundle: The opened bundle.
        backend: The backend that was asked for.
        sessions: Those of TensorRT and TensorRT-RTX that run engines of the bundle.
        low_memory: Whether weights stay in their file.

    Raises:
        LdmrtError: States the reason, and the way that there is.
    """
    if low_memory:
        problem = "low_memory leaves weights in their file, where none is replaced"
        raise LdmrtError("lora", problem, hint=f"without --low-memory, or {MERGE}")
    if narrow := [name for name in bundle.components if bundle.precision(name) == "bf16"]:
        problem, hint = "weights in bfloat16 cannot be replaced at run time", f"{MERGE} --precision bf16"
        raise LdmrtError("lora", problem, expected="fp32 or fp16", found=", ".join(narrow), hint=hint)
    name = sessions[0].backend if backend == "auto" and sessions else backend
    if name not in (*PROVIDERS, "auto", "tensorrt"):
        reason = REASONS.get(name) or REASONS[name.partition("-")[0]]
        hint = f"--backend onnxruntime, or {MERGE}"
        raise LdmrtError("lora", f"{reason} at run time", expected="onnxruntime, tensorrt", found=name, hint=hint)


def check_refittable(bundle: Bundle, session: "Session", components: Collection[str]) -> None:
    """Refuse to replace weights of components of which TensorRT has engines here, but none that was built for it.

    Raises:
        LdmrtError: States the engine, and the command that builds it anew.
    """
    usable = list(_usable(bundle, session))
    for component in sorted(components):
        mine = [one for one in usable if bundle.home(one.recipe.component) == component]
        if mine and not any(REFIT in one.recipe.flags for one in mine):
            problem = f"engine {mine[0].folder.name} was built without --refit"
            hint = f"{with_refit(rebuild(bundle, mine[0].recipe))}; or --backend onnxruntime"
            raise LdmrtError("lora", problem, expected="weights that can be replaced", hint=hint)


def has_refittable(bundle: Bundle, session: "Session", graph: str) -> bool:
    """Tell whether TensorRT has an engine of a graph here whose weights can be replaced."""
    return any(one.recipe.component == graph and REFIT in one.recipe.flags for one in _usable(bundle, session))


def _usable(bundle: Bundle, session: "Session") -> Iterator[EngineFile]:
    """Yield the engines of a bundle that a library may run here."""
    for one in engines(bundle.path):
        if isinstance(one, EngineFile) and one.recipe.backend == session.backend and runs_on(one.recipe, session.gpu):
            yield one
