"""Tell which schedulers run a network: one that was trained on another equation they would run wrongly."""

from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.samplers.config import KEYS, Config
from ldmrt.runtime.samplers.grid import Grid

from . import flow_matching

TIMESTEPS, FLOW = "timesteps", "flows"
# What the network of a class is told and predicts; classes that are not here run those of timesteps.
EQUATIONS = {
    "ScoreSdeVeScheduler": "the VE equation",
    "ScoreSdeVpScheduler": "the VP equation",
    **dict.fromkeys(flow_matching.CLASSES, FLOW),
}


def refuse_other(config: Config, class_name: str) -> None:
    """Raise an `InvalidRequest` where a scheduler is to run a network of another equation.

    Args:
        config: The scheduler config that came with the network; it may name no class.
        class_name: The class to run it by. Those with `use_flow_sigmas` also run flows.
    """
    own = str(config.get("_class_name"))
    if own not in KEYS:
        return
    there = FLOW if flow_matching.is_flow(config) else EQUATIONS.get(own, TIMESTEPS)
    if there == FLOW and "use_flow_sigmas" in KEYS[class_name]:
        return
    if there != EQUATIONS.get(class_name, TIMESTEPS):
        expected = f"a sampler of {there if there in (TIMESTEPS, FLOW) else own}"
        raise InvalidRequest("scheduler", f"{class_name} cannot replace {own}", expected=expected)


def refuse_to_share(config: Config, class_name: str) -> None:
    """Raise an `InvalidRequest` where two models are to share the timesteps of a class that has none."""
    for name in (class_name, str(config.get("_class_name"))):
        if name in EQUATIONS:
            problem, expected = f"{name} has no timesteps to share", "neither denoising_start nor denoising_end"
            raise InvalidRequest("scheduler", problem, expected=expected)


def refuse_epsilon_of_pure_noise(grid: Grid) -> None:
    """Raise an `LdmrtError` where a network that predicts noise would be asked about latents that are noise alone."""
    if grid.config["prediction_type"] == "epsilon" and any(node.alpha == 0 for node, _ in grid.walk()):
        problem = "zero terminal SNR starts from noise alone, of which epsilon says nothing"
        raise LdmrtError("scheduler", problem, expected="prediction_type v_prediction or sample", found="epsilon")
