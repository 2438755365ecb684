"""The table of schedulers, and the door from a diffusers scheduler config to a plan."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral

import numpy as np

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.nearest import nearest

from . import exponential, solvers
from .config import KEYS, Config, resolve
from .grid import Grid, distilled_grid, edm_grid, level_grid, sine_grid, whole_grid
from .hand_over import entry, timestep, until
from .plan import Plan


@dataclass(frozen=True)
class Scheduler:
    """One line of the table: how a config becomes a grid, and the grid rows."""

    class_name: str  # in diffusers
    order: int  # of accuracy, as measured once the history is full; where noise is drawn, in law
    grid: Callable[..., Grid]  # of config, steps and the grids in `given`
    solve: Callable[[Grid], Iterator[solvers.Row]]
    given: tuple[str, ...] = ()  # the grids that a caller may hand in
    eta: float | None = None  # the share of noise drawn afresh where the caller does not say; None: not adjustable
    fixed: Config = field(default_factory=dict)  # what the class does without a key for it
    asks: Config = field(default_factory=dict)  # what the everyday name asks of the config
    calls: int = 1  # of the network in a step but the last

    @property
    def unscaled(self) -> bool:
        """Whether the class keeps latents as x0 + level * eps, which are x / alpha of the model's own space."""
        return self.grid in (_early, _dpm2)


_SDE, _T, _TS = "sde-dpmsolver++", ("timesteps",), ("timesteps", "sigmas")
_ZERO, _TO_MIN = {"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"}


def _multistep(solver_order: int, algorithm: str = "dpmsolver++", order: int = 2) -> Scheduler:
    asks = {"solver_order": solver_order, "algorithm_type": algorithm}
    asks |= _TO_MIN if algorithm == "dpmsolver" else {}
    return Scheduler("DPMSolverMultistepScheduler", order, level_grid, exponential.dpm_multistep, _T, asks=asks)


def _singlestep(order: int) -> Scheduler:
    asks = {"solver_order": order, "algorithm_type": "dpmsolver++"}
    return Scheduler("DPMSolverSinglestepScheduler", order, level_grid, exponential.dpm_singlestep, _T, asks=asks)


_DEIS = _TO_MIN | {"algorithm_type": "deis", "solver_type": "heun", "euler_at_final": False}
_UNCLIPPED = {"clip_sample": False, "thresholding": False}
_early, _dpm2 = partial(level_grid, early=True, whole=False), partial(level_grid, early=True)
_own_end = partial(level_grid, own_end=True)
_strided = partial(whole_grid, strided=True)
_lcm, _tcd = partial(distilled_grid, last=None), partial(distilled_grid, last=0)

# By everyday name; the first line of a class also serves a config that names the class. A new scheduler is one
# function in solvers.py, its keys in config.py and its line here.
SCHEDULERS: dict[str, Scheduler] = {
    "ddim": Scheduler("DDIMScheduler", 1, _strided, solvers.ddim, eta=0.0),
    "ddpm": Scheduler("DDPMScheduler", 1, whole_grid, solvers.ddpm, _T),
    "pndm": Scheduler("PNDMScheduler", 2, whole_grid, solvers.pndm),
    "plms": Scheduler("PNDMScheduler", 2, whole_grid, solvers.pndm, asks={"skip_prk_steps": True}),
    "lms": Scheduler("LMSDiscreteScheduler", 4, _early, solvers.lms, _TS, fixed=_ZERO),
    "euler": Scheduler("EulerDiscreteScheduler", 1, _early, solvers.euler, _TS),
    "euler_a": Scheduler("EulerAncestralDiscreteScheduler", 1, _early, solvers.ddim, _TS, 1.0, _ZERO),
    "heun": Scheduler("HeunDiscreteScheduler", 2, _early, solvers.heun, _TS, fixed=_ZERO, calls=2),
    "dpm2": Scheduler("KDPM2DiscreteScheduler", 2, _dpm2, solvers.dpm2, _TS, fixed=_ZERO | {"eta": 0.0}, calls=2),
    "dpm2_a": Scheduler("KDPM2AncestralDiscreteScheduler", 2, _dpm2, solvers.dpm2, _TS, 1.0, _ZERO, calls=2),
    "dpmpp_sde": Scheduler("DPMSolverSDEScheduler", 2, _early, solvers.dpm_sde, _TS, fixed=_ZERO, calls=2),
    "dpmpp_2m": _multistep(2),
    "dpmpp_3m": _multistep(3),
    "dpmpp_2m_sde": _multistep(2, _SDE),
    "dpmpp_3m_sde": _multistep(3, _SDE, order=1),
    "dpm_2m": _multistep(2, "dpmsolver"),
    "dpm_3m": _multistep(3, "dpmsolver"),
    "dpmpp_2s": _singlestep(2),
    "dpmpp_3s": _singlestep(3),
    "unipc": Scheduler("UniPCMultistepScheduler", 3, _own_end, exponential.unipc, _T),
    "deis": Scheduler("DEISMultistepScheduler", 2, _own_end, exponential.dpm_multistep, _T, fixed=_DEIS),
    "ipndm": Scheduler("IPNDMScheduler", 2, sine_grid, solvers.ipndm, fixed={"prediction_type": "v_prediction"}),
    "lcm": Scheduler("LCMScheduler", 1, _lcm, solvers.lcm, _T),
    "tcd": Scheduler("TCDScheduler", 1, _tcd, solvers.tcd, _T, 0.3, _UNCLIPPED),
    "edm_euler": Scheduler("EDMEulerScheduler", 1, partial(edm_grid, own_end=True), solvers.euler),
    "edm_dpmpp_2m": Scheduler("EDMDPMSolverMultistepScheduler", 2, edm_grid, exponential.dpm_multistep),
}
BY_CLASS = {scheduler.class_name: name for name, scheduler in reversed(SCHEDULERS.items())}
SPACINGS = ("karras", "exponential", "beta")  # may follow a name: dpmpp_2m_karras


def find_scheduler(config: Config, name: str | None = None) -> tuple[Scheduler, Config]:
    """Find a scheduler by its everyday name, or by the config's class; and what the name asks of the config."""
    wanted = everyday_name(config) if name is None else name
    base, _, spacing = (wanted or "").rpartition("_") if (wanted or "").endswith(SPACINGS) else (wanted, "", "")
    if base not in SCHEDULERS:
        raise _unknown(config.get("_class_name"), BY_CLASS) if name is None else _unknown(name, _spellings())
    scheduler = SCHEDULERS[base]
    if name is None:
        return scheduler, {}
    respaced = {f"use_{kind}_sigmas": kind == spacing for kind in SPACINGS} if spacing else {}
    return scheduler, {**scheduler.asks, **respaced}


def _spellings() -> dict[str, str]:
    """Everyday names, those with a spacing of noise levels, and classes of diffusers: each with its everyday name."""
    spaced = [
        f"{name}_{kind}"
        for name, scheduler in SCHEDULERS.items()
        for kind in SPACINGS
        if f"use_{kind}_sigmas" in KEYS[scheduler.class_name]
    ]
    return {**{name: name for name in SCHEDULERS}, **BY_CLASS, **{name: name for name in spaced}}


def _unknown(word: object, spellings: Mapping[str, str]) -> LdmrtError:
    close = spellings.get(nearest(word, spellings) or "")
    problem = f"unknown scheduler {word!r}" + (f", did you mean {close!r}?" if close else "")
    return LdmrtError("scheduler", problem, expected=", ".join(SCHEDULERS), hint=f"--scheduler {close or 'ddim'}")


def everyday_name(config: Config) -> str | None:
    """The name in `SCHEDULERS` of the class that a config names, if it is there."""
    return BY_CLASS.get(str(config.get("_class_name")))


def plan_from_config(
    config: Config,
    steps: int,
    *,
    name: str | None = None,
    strength: float = 1.0,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    eta: float | None = None,
    shortened: bool = False,
    start: float | None = None,
    end: float | None = None,
) -> Plan:
    """The plan of a diffusers scheduler_config.json.

    `name` takes another scheduler on the same config, as diffusers' `from_config` does. `strength` below 1 starts
    later, as its img2img pipelines count it. `timesteps`, or `sigmas` with the last one to arrive at, take the place of
    the grid and of `steps`. `eta` is the share of fresh noise, 0 to 1.

    With `shortened` the strength shortens the grid that LCM or TCD was distilled on and leaves all steps, as in
    diffusers' LatentConsistencyModelImg2ImgPipeline. `start` and `end` are its `denoising_start` and `denoising_end`,
    0 to 1: the plan goes on with latents that another one left, or leaves them; then `strength` does not count.
    """
    scheduler, asked = find_scheduler(config, name)
    own = resolve({**config, **asked}, scheduler.class_name)
    if missing := [key for key, value in asked.items() if own.get(key, False) != value]:
        raise LdmrtError(
            "scheduler", f"{scheduler.class_name} has no {missing[0]}", expected="another scheduler", found=name
        )
    if not 0.0 < strength <= 1.0:
        raise LdmrtError("scheduler", "invalid strength", expected="above 0, at most 1", found=strength)
    if eta is not None and scheduler.eta is None and eta:
        raise LdmrtError("scheduler", f"{scheduler.class_name} has no eta to choose", expected="no eta", found=eta)
    if not 0.0 <= (eta or 0.0) <= 1.0:
        raise LdmrtError("scheduler", "invalid eta", expected="0 to 1", found=eta)
    c = {**own, "eta": scheduler.eta if eta is None else eta, **scheduler.fixed}
    grids = _handed(scheduler, timesteps, sigmas)
    if not grids and (not isinstance(steps, Integral) or not 1 <= steps <= c["num_train_timesteps"]):
        expected = f"1 to {c['num_train_timesteps']}"
        raise LdmrtError("scheduler", "invalid number of steps", expected=expected, found=steps)
    try:
        with np.errstate(all="ignore"):
            distilled = shortened and not grids and scheduler.grid in (_lcm, _tcd)
            grid = scheduler.grid(c, steps, **grids, **({"strength": strength} if distilled else {}))
            grid = replace(grid, config=c)
            plan = _begun(grid, scheduler, start, 1.0 if distilled else strength, len(grid) if grids else steps)
            if end is None:
                return plan
            return until(plan, timestep(end, c["num_train_timesteps"]), unscaled=scheduler.unscaled)
    except (ArithmeticError, ValueError):  # of numbers that no grid can be made of
        problem = f"{scheduler.class_name} has no finite plan for this config"
        raise LdmrtError("scheduler", problem, expected="fewer steps, or another end", found=f"{steps} steps") from None


def _begun(grid: Grid, scheduler: Scheduler, start: float | None, strength: float, count: int) -> Plan:
    """The plan from where it begins: `strength` of its `count` steps, or what another model left to it at `start`."""
    if start is None:
        begin = min(count - max(1, int(count * strength)), len(grid) - 1)
        return _plan(replace(grid, begin=begin), scheduler)
    rows = [node for node, _ in scheduler.solve(grid)]
    found = entry(rows, scheduler.calls, timestep(start, grid.config["num_train_timesteps"]))
    plan = _plan(replace(grid, begin=found.row // scheduler.calls), scheduler)
    return replace(plan, prior_scale=found.scale, first=found.row)


def _handed(scheduler: Scheduler, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Config:
    """The grids that the caller hands in, checked."""
    grids = {name: grid for name, grid in (("timesteps", timesteps), ("sigmas", sigmas)) if grid is not None}
    if len(grids) > 1:
        raise LdmrtError("scheduler", "two grids", expected="timesteps or sigmas", found="both")
    for name, grid in grids.items():
        if name not in scheduler.given:
            raise LdmrtError("scheduler", f"{scheduler.class_name} takes no {name}", expected="steps alone", found=name)
        if len(grid) < 1 + (name == "sigmas") or (np.diff(np.asarray(grid, np.float64)) >= 0).any():
            raise LdmrtError("scheduler", f"invalid {name}", expected="numbers that descend", found=list(grid))
    return grids


def _plan(grid: Grid, scheduler: Scheduler) -> Plan:
    c = grid.config
    if c["prediction_type"] == "epsilon" and any(node.alpha == 0 for node, _ in grid.walk()):
        problem = "zero terminal SNR starts from noise alone, of which epsilon says nothing"
        raise LdmrtError("scheduler", problem, expected="prediction_type v_prediction or sample", found="epsilon")
    rows = list(scheduler.solve(grid))
    x, m = np.eye(2)
    read = np.array([solvers.read(c, node, x, m) for node, _ in rows])
    t, alpha, sigma = np.array([node for node, _ in rows]).T
    table = np.array([state for _, state in rows])
    if not np.isfinite(table).all() or not np.isfinite(read).all():
        raise FloatingPointError
    first, prior = grid.steps[0][0], 1.0
    if "sigma_data" in c:
        prior = first.alpha * float(np.hypot(1, c["sigma_max"]))
    elif scheduler.unscaled and c["timestep_spacing"] != "leading":
        prior = first.sigma
    learned = str(c.get("variance_type") or "")
    if learned.startswith("learned") and scheduler.solve is not solvers.ddpm:
        learned = "learned, unused"
    spread = [solvers.spread(node, to) for node, to in grid.walk()] if learned == "learned_range" else None
    return Plan(
        t=t,
        alpha=alpha,
        sigma=sigma,
        read=read,
        table=table,
        prior_scale=prior,
        clip=float(c["clip_sample_range"]) if c.get("clip_sample") else None,
        threshold=(c["dynamic_thresholding_ratio"], c["sample_max_value"]) if c.get("thresholding") else None,
        learned=learned if learned.startswith("learned") else "",
        spread=None if spread is None else np.array(spread),
    )
