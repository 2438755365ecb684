"""The table of schedulers, and the way from a diffusers scheduler config to a plan."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral

import numpy as np

from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.nearest import nearest

from . import solvers
from .config import CHURN, KEYS, LARGEST, Config, resolve
from .grid import Grid, distilled_grid, early_grid, edm_grid, late_grid, sine_grid, whole_grid
from .hand_over import entry, timestep, until
from .papers import dpm_deis_unipc, equations, flow_matching, score_sde
from .papers.langevin import Langevin
from .plan import Plan, Variance


@dataclass(frozen=True)
class Scheduler:
    """Describes how a config becomes a grid, and the grid the rows of a plan: one line of the table.

    Attributes:
        class_name: The class in diffusers.
        order: The order of accuracy, as measured once the history is full; where noise is drawn, in law.
        grid: Makes the grid from the config, the steps and the grids in `given`.
        solve: Walks the grid and yields the rows.
        given: The grids that a caller may choose, "timesteps" and "sigmas".
        eta: The share of noise drawn afresh where the caller does not say; None where it cannot be chosen.
        fixed: Settings of a class that has no key for them.
        asks: Settings that the everyday name requires of the config.
        calls: Evaluations of the network in every step but the last.
    """

    class_name: str
    order: int
    grid: Callable[..., Grid]
    solve: Callable[[Grid], Iterator[solvers.Row]]
    given: tuple[str, ...] = ()
    eta: float | None = None
    fixed: Config = field(default_factory=dict)
    asks: Config = field(default_factory=dict)
    calls: int = 1


_SDE, _T, _TS = "sde-dpmsolver++", ("timesteps",), ("timesteps", "sigmas")
_ZERO, _TO_MIN = {"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"}


def _multistep(solver_order: int, algorithm: str = "dpmsolver++", order: int = 2) -> Scheduler:
    """Make the line of a DPM-Solver that keeps earlier predictions."""
    asks = {"solver_order": solver_order, "algorithm_type": algorithm}
    asks |= _TO_MIN if algorithm == "dpmsolver" else {}
    return Scheduler("DPMSolverMultistepScheduler", order, late_grid, dpm_deis_unipc.dpm_multistep, _T, asks=asks)


def _singlestep(order: int) -> Scheduler:
    """Make the line of a DPM-Solver that evaluates the network inside each of its steps."""
    asks = {"solver_order": order, "algorithm_type": "dpmsolver++"}
    return Scheduler("DPMSolverSinglestepScheduler", order, late_grid, dpm_deis_unipc.dpm_singlestep, _T, asks=asks)


_DEIS = _TO_MIN | {"algorithm_type": "deis", "solver_type": "heun", "euler_at_final": False}
_UNCLIPPED = {"clip_sample": False, "thresholding": False}
_early_whole, _own_end = partial(early_grid, whole=True), partial(late_grid, own_end=True)
_strided = partial(whole_grid, strided=True)
_VE, _SCORE, _EPS = "ScoreSdeVeScheduler", {"prediction_type": "score"}, {"prediction_type": "epsilon"}
_M, flow_grid = {"prediction_type": "flow_prediction"}, flow_matching.flow_grid
_lcm, _tcd = partial(distilled_grid, last=None), partial(distilled_grid, last=0)

SCHEDULERS: dict[str, Scheduler] = {
    "ddim": Scheduler("DDIMScheduler", 1, _strided, solvers.ddim, eta=0.0),
    "ddpm": Scheduler("DDPMScheduler", 1, whole_grid, solvers.ddpm, _T),
    "pndm": Scheduler("PNDMScheduler", 2, whole_grid, solvers.pndm),
    "plms": Scheduler("PNDMScheduler", 2, whole_grid, solvers.pndm, asks={"skip_prk_steps": True}),
    "lms": Scheduler("LMSDiscreteScheduler", 4, early_grid, solvers.lms, _TS, fixed=_ZERO),
    "euler": Scheduler("EulerDiscreteScheduler", 1, early_grid, solvers.euler, _TS),
    "euler_a": Scheduler("EulerAncestralDiscreteScheduler", 1, early_grid, solvers.ddim, _TS, 1.0, _ZERO),
    "heun": Scheduler("HeunDiscreteScheduler", 2, early_grid, solvers.heun, _TS, fixed=_ZERO, calls=2),
    "dpm2": Scheduler(
        "KDPM2DiscreteScheduler", 2, _early_whole, solvers.dpm2, _TS, fixed=_ZERO | {"eta": 0.0}, calls=2
    ),
    "dpm2_a": Scheduler("KDPM2AncestralDiscreteScheduler", 2, _early_whole, solvers.dpm2, _TS, 1.0, _ZERO, calls=2),
    "dpmpp_sde": Scheduler("DPMSolverSDEScheduler", 2, early_grid, solvers.dpm_sde, _TS, fixed=_ZERO, calls=2),
    "dpmpp_2m": _multistep(2),
    "dpmpp_3m": _multistep(3),
    "dpmpp_2m_sde": _multistep(2, _SDE),
    "dpmpp_3m_sde": _multistep(3, _SDE, order=1),
    "dpm_2m": _multistep(2, "dpmsolver"),
    "dpm_3m": _multistep(3, "dpmsolver"),
    "dpmpp_2s": _singlestep(2),
    "dpmpp_3s": _singlestep(3),
    "unipc": Scheduler("UniPCMultistepScheduler", 3, _own_end, dpm_deis_unipc.unipc, _T),
    "deis": Scheduler("DEISMultistepScheduler", 2, _own_end, dpm_deis_unipc.dpm_multistep, _T, fixed=_DEIS),
    "ipndm": Scheduler("IPNDMScheduler", 2, sine_grid, solvers.ipndm, fixed={"prediction_type": "v_prediction"}),
    "lcm": Scheduler("LCMScheduler", 1, _lcm, solvers.lcm, _T),
    "tcd": Scheduler("TCDScheduler", 1, _tcd, solvers.tcd, _T, 0.3, _UNCLIPPED),
    "edm_euler": Scheduler("EDMEulerScheduler", 1, partial(edm_grid, own_end=True), solvers.euler),
    "edm_dpmpp_2m": Scheduler("EDMDPMSolverMultistepScheduler", 2, edm_grid, dpm_deis_unipc.dpm_multistep),
    "score_ve": Scheduler(_VE, 1, score_sde.ve_grid, score_sde.ve, fixed=_SCORE),
    "score_ve_euler": Scheduler(_VE, 1, score_sde.ve_flow_grid, solvers.euler, fixed=_SCORE | CHURN),
    "score_ve_heun": Scheduler(_VE, 2, score_sde.ve_flow_grid, solvers.heun, fixed=_SCORE | CHURN, calls=2),
    "score_vp": Scheduler("ScoreSdeVpScheduler", 1, score_sde.vp_grid, score_sde.vp, fixed=_EPS),
    "flow_euler": Scheduler(flow_matching.EULER, 1, flow_grid, flow_matching.flow_euler, fixed=_M),
    "flow_heun": Scheduler(flow_matching.HEUN, 2, flow_grid, flow_matching.flow_heun, fixed=_M, calls=2),
}
"""Names every scheduler, and the class of diffusers with which each agrees.

The first line of a class also serves a config that names the class. A new scheduler is one function in `solvers.py`,
its keys in `config.py` and its line here; `docs/samplers.md` shows one, and names the papers.
"""
BY_CLASS = {scheduler.class_name: name for name, scheduler in reversed(SCHEDULERS.items())}
SPACINGS = ("karras", "exponential", "beta")  # may follow a name: dpmpp_2m_karras


def find_scheduler(config: Config, name: str | None = None) -> tuple[Scheduler, Config]:
    """Find a scheduler by its everyday name, or by the class that the config names.

    Args:
        config: A diffusers scheduler config.
        name: A key of `SCHEDULERS`, to which "_karras", "_exponential" or "_beta" may be added; None for the class of
            the config.

    Returns:
        The line of the table, and the settings that the name requires of the config.

    Raises:
        InvalidRequest: The name is unknown; the nearest is suggested.
        LdmrtError: The config names an unknown class, or none.
    """
    wanted = everyday_name(config) if name is None else name
    base, _, spacing = (wanted or "").rpartition("_") if (wanted or "").endswith(SPACINGS) else (wanted, "", "")
    if base not in SCHEDULERS:
        if name is None:
            raise _unknown(LdmrtError, config.get("_class_name"), BY_CLASS)
        raise _unknown(InvalidRequest, name, _spellings())
    scheduler = SCHEDULERS[base]
    if name is None:
        return scheduler, {}
    respaced = {f"use_{kind}_sigmas": kind == spacing for kind in SPACINGS} if spacing else {}
    return scheduler, {**scheduler.asks, **respaced}


def _spellings() -> dict[str, str]:
    """List every spelling with its everyday name: names, those with a spacing of noise levels, and classes."""
    spaced = [
        f"{name}_{kind}"
        for name, scheduler in SCHEDULERS.items()
        for kind in SPACINGS
        if f"use_{kind}_sigmas" in KEYS[scheduler.class_name]
    ]
    return {**{name: name for name in SCHEDULERS}, **BY_CLASS, **{name: name for name in spaced}}


def _unknown(kind: type[LdmrtError], word: object, spellings: Mapping[str, str]) -> LdmrtError:
    """Make the error about an unknown scheduler, with the nearest everyday name as its hint."""
    close = spellings.get(nearest(word, spellings) or "")
    problem = f"unknown scheduler {word!r}" + (f", did you mean {close!r}?" if close else "")
    return kind("scheduler", problem, expected=", ".join(SCHEDULERS), hint=f"--scheduler {close or 'ddim'}")


def everyday_name(config: Config) -> str | None:
    """Return the name in `SCHEDULERS` of the class that a config names; None where it names another."""
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
    tokens: int | None = None,
    trailing: bool = False,
) -> Plan:
    """Solve a sampler for one grid, from a diffusers scheduler_config.json.

    Args:
        config: The config. Missing keys mean what they mean to the class in diffusers; unknown ones are skipped with a
            warning.
        steps: Number of steps, 1 to `num_train_timesteps`. It does not count where timesteps or sigmas are chosen.
        name: Another scheduler on the same config, as diffusers' `from_config` takes it: a key of `SCHEDULERS`, to
            which "_karras", "_exponential" or "_beta" may be added.
        strength: The share of the steps to take, above 0 to 1, counted from the end as in diffusers' img2img pipelines.
        timesteps: The training timesteps to evaluate, descending, in place of the grid.
        sigmas: The noise levels sigma / alpha, descending, in place of the grid; the last is where the sampler arrives.
        eta: The share of noise that is drawn afresh, 0 to 1 (Song et al. 2021, equation 16); None for the scheduler's
            own.
        shortened: Let `strength` shorten the grid that LCM or TCD was distilled on and leave all steps, as in
            diffusers' LatentConsistencyModelImg2ImgPipeline.
        start: Go on with the latents that another model left at this share of the schedule, 0 to 1: `denoising_start`
            of diffusers' SDXL pipelines. `strength` then does not count.
        end: Stop at this share of the schedule, 0 to 1, for another model to go on: `denoising_end`.
        tokens: How many tokens of the image a transformer sees, by which `use_dynamic_shifting` shifts the levels.
        trailing: Let the levels of a flow be 1, 1 - 1/n, ..., 1/n before they are shifted, as those of FLUX.1 are.

    Returns:
        The plan, computed in float64; with `start` or `end` only the rows that are left.

    Raises:
        InvalidRequest: Steps, strength, eta, timesteps, sigmas or the name are invalid, or not for this scheduler.
        LdmrtError: The config is invalid, contradicts itself, or has no finite plan.
    """
    scheduler, asked = find_scheduler(config, name)
    equations.refuse_other(config, scheduler.class_name)
    if tokens is not None and not (isinstance(tokens, Integral) and 1 <= tokens <= LARGEST):
        raise InvalidRequest("scheduler", "tokens out of range", expected=f"1 to {LARGEST}", found=repr(tokens))
    own = resolve({**flow_matching.for_solver(config, scheduler.class_name, tokens), **asked}, scheduler.class_name)
    if missing := [key for key, value in asked.items() if own.get(key, False) != value]:
        problem = f"{scheduler.class_name} has no {missing[0]}"
        raise InvalidRequest("scheduler", problem, expected="another scheduler", found=name)
    if not 0.0 < strength <= 1.0:
        raise InvalidRequest("scheduler", "invalid strength", expected="above 0, at most 1", found=strength)
    if eta is not None and scheduler.eta is None and eta:
        raise InvalidRequest("scheduler", f"{scheduler.class_name} has no eta to choose", expected="no eta", found=eta)
    if not 0.0 <= (eta or 0.0) <= 1.0:
        raise InvalidRequest("scheduler", "invalid eta", expected="0 to 1", found=eta)
    if (start, end) != (None, None):
        equations.refuse_to_share(config, scheduler.class_name)
    c = {**own, "eta": scheduler.eta if eta is None else eta, "tokens": tokens, "trailing": trailing, **scheduler.fixed}
    chosen = _chosen_grids(scheduler, timesteps, sigmas)
    if not chosen and (not isinstance(steps, Integral) or not 1 <= steps <= c["num_train_timesteps"]):
        expected = f"1 to {c['num_train_timesteps']}"
        raise InvalidRequest("scheduler", "invalid number of steps", expected=expected, found=steps)
    try:
        with np.errstate(all="ignore"):
            distilled = shortened and not chosen and "original_inference_steps" in c
            grid = scheduler.grid(c, steps, **chosen, **({"strength": strength} if distilled else {}))
            count, share = len(grid) if chosen else steps, 1.0 if distilled else strength
            skipped = flow_matching.skipped(config, scheduler.class_name, count, share)
            plan = _begun(grid, scheduler, start, skipped)
            if end is None:
                return plan
            return until(plan, timestep(end, c["num_train_timesteps"]), unscaled=grid.unscaled)
    except (ArithmeticError, ValueError):  # of numbers that no grid can be made of
        problem = f"{scheduler.class_name} has no finite plan for this config"
        raise LdmrtError("scheduler", problem, expected="fewer steps, or another end", found=f"{steps} steps") from None


def _chosen_grids(
    scheduler: Scheduler, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None
) -> dict[str, Sequence[float]]:
    """Check the grids that the caller chooses, and return them by name."""
    grids = {name: grid for name, grid in (("timesteps", timesteps), ("sigmas", sigmas)) if grid is not None}
    if len(grids) > 1:
        raise InvalidRequest("scheduler", "two grids", expected="timesteps or sigmas", found="both")
    for name, grid in grids.items():
        if name not in scheduler.given:
            problem = f"{scheduler.class_name} takes no {name}"
            raise InvalidRequest("scheduler", problem, expected="steps alone", found=name)
        if len(grid) < 1 + (name == "sigmas") or (np.diff(np.asarray(grid, np.float64)) >= 0).any():
            raise InvalidRequest("scheduler", f"invalid {name}", expected="numbers that descend", found=list(grid))
    return grids


def _begun(grid: Grid, scheduler: Scheduler, start: float | None, skipped: int) -> Plan:
    """Tabulate a plan from where it begins: after some steps, or at what another model left at `start`."""
    if start is None:
        return _tabulate(replace(grid, begin=min(skipped, len(grid) - 1)), scheduler)
    nodes = [node for node, _ in scheduler.solve(grid)]
    first = entry(nodes, scheduler.calls, timestep(start, grid.config["num_train_timesteps"]))
    plan = _tabulate(replace(grid, begin=first.row // scheduler.calls), scheduler)
    return replace(plan, prior_scale=first.scale, first=first.row)


def _tabulate(grid: Grid, scheduler: Scheduler) -> Plan:
    """Run a solver over its grid and keep its rows as a table.

    Raises:
        LdmrtError: The network cannot be evaluated at the first node.
        ArithmeticError: A row is not finite.
    """
    c = grid.config
    equations.refuse_epsilon_of_pure_noise(grid)
    rows = list(scheduler.solve(grid))
    x, m = np.eye(2)
    read = np.array([solvers.read(c, node, x, m) for node, _ in rows])
    table = np.array([latents for _, latents in rows])
    if not np.isfinite(table).all() or not np.isfinite(read).all():
        raise FloatingPointError("a row of the plan is not finite")
    t, alpha, sigma = np.array([node for node, _ in rows]).T
    variance = _variance(scheduler, c)
    in_range = variance is Variance.LEARNED_RANGE
    return Plan(
        t=t,
        alpha=alpha,
        sigma=sigma,
        read=read,
        table=table,
        prior_scale=grid.prior_scale,
        clip=float(c["clip_sample_range"]) if c.get("clip_sample") else None,
        threshold=(c["dynamic_thresholding_ratio"], c["sample_max_value"]) if c.get("thresholding") else None,
        variance=variance,
        spread=np.array([solvers.spread(node, to) for node, to in grid.walk()]) if in_range else None,
        langevin=_langevin(scheduler, c),
    )


def _variance(scheduler: Scheduler, c: Config) -> Variance:
    """Tell how this solver reads the network's second half: DDPM alone draws noise of a learned variance."""
    kind = str(c.get("variance_type") or "")
    if not kind.startswith("learned"):
        return Variance.ABSENT
    return Variance(kind) if scheduler.solve is solvers.ddpm else Variance.IGNORED


def _langevin(scheduler: Scheduler, c: Config) -> Langevin | None:
    """Return the corrector of a solver that has one."""
    if scheduler.solve is not score_sde.ve or not c["correct_steps"]:
        return None
    return Langevin(float(c["snr"]), c["correct_steps"], by_batch=c["step_by"] == "batch")
