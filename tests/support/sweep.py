"""What the sweep of the samplers gives to each key of a scheduler's config, alone and together with others."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ldmrt.runtime.samplers.config import CHURN, KEYS
from ldmrt.runtime.samplers.registry import SPACINGS

Config = Mapping[str, Any]

VALUES: dict[str, Sequence[Any]] = {
    "num_train_timesteps": [500],
    "beta_start": [0.0005],
    "beta_end": [0.015],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "trained_betas": [np.linspace(0.0005, 0.03, 1000).tolist()],
    "prediction_type": ["epsilon", "v_prediction", "sample", "flow_prediction"],
    "timestep_spacing": ["linspace", "leading", "trailing"],
    "steps_offset": [0, 1],
    "rescale_betas_zero_snr": [True],
    "clip_sample": [True, False],
    "clip_sample_range": [0.3],
    "thresholding": [True],
    "sample_max_value": [1.5],
    "dynamic_thresholding_ratio": [0.8],
    "set_alpha_to_one": [True, False],
    "variance_type": [None, "fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"],
    "skip_prk_steps": [True, False],
    "use_karras_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_beta_sigmas": [True],
    "use_lu_lambdas": [True],
    "use_flow_sigmas": [True],
    "flow_shift": [3.0],
    "sigma_min": [0.05],
    "sigma_max": [9.0],
    "final_sigmas_type": ["zero", "sigma_min"],
    "interpolation_type": ["linear", "log_linear"],
    "timestep_type": ["discrete", "continuous"],
    "solver_order": [1, 2, 3],
    "algorithm_type": ["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", "deis"],
    "solver_type": ["midpoint", "heun", "logrho", "bh1", "bh2"],
    "lower_order_final": [True, False],
    "euler_at_final": [True],
    "lambda_min_clipped": [-3.0],
    "predict_x0": [True, False],
    "disable_corrector": [[0, 2]],
    "original_inference_steps": [100],
    "timestep_scaling": [3.0],
    "sigma_data": [1.0],
    "sigma_schedule": ["karras", "exponential"],
    "rho": [5.0],
    "s_churn": [3.0],
    "s_tmin": [0.5],
    "s_tmax": [5.0],
    "s_noise": [1.01],
    "snr": [0.3],
    "sampling_eps": [0.1],
    "correct_steps": [0, 2],
    "beta_min": [0.3],
    "beta_max": [10.0],
    "step_by": ["batch"],
    "shift": [3.0],
    "shift_terminal": [0.1],
    "stochastic_sampling": [True],
}
UNSWEPT = {
    "use_dynamic_shifting": "needs the size of the picture: test_flow_matching.py, or is refused",
    **dict.fromkeys(
        ("time_shift_type", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
        "says how dynamic shifting is done",
    ),
    "invert_sigmas": "is refused",
    "solver_p": "is refused",
    "noise_sampler_seed": "seeds noise, which the sweep hands in",
}
ETA = ("DDIMScheduler", "TCDScheduler")  # whose `step` takes eta in diffusers


def takes(class_name: str) -> set[str]:
    """The keys that a class is swept over."""
    keys = set(KEYS[class_name]) - set(UNSWEPT) | ({"eta"} if class_name in ETA else set())
    # diffusers' Heun can be churned no more: what ours does with it stands in test_papers.py alone.
    return keys - set(CHURN) if class_name == "HeunDiscreteScheduler" else keys


def axis(*keys: str) -> list[Config]:
    """The values of keys, one at a time."""
    return [{key: value} for key in keys for value in VALUES[key]]


def optional(*keys: str) -> list[Config]:
    """The same, or none."""
    return [{}, *axis(*keys)]


RESPACED = optional(*(f"use_{kind}_sigmas" for kind in SPACINGS), "use_lu_lambdas")
FINAL = axis("final_sigmas_type")
FLOW = [{"use_flow_sigmas": True, **prediction} for prediction in axis("prediction_type")]
ZERO = [{"rescale_betas_zero_snr": True, "prediction_type": prediction} for prediction in ("v_prediction", "sample")]
ENDING: list[Config] = [{}, {"lower_order_final": False}, {"euler_at_final": True}]
HELD: list[Config] = [
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 0.3},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.8},
]
SHARES: list[Config] = [{}, *({"eta": eta} for eta in (0.0, 0.5, 1.0))]
CHURNED: list[Config] = [{"s_churn": 3.0}, {"s_churn": 3.0, "s_tmin": 0.5, "s_tmax": 5.0, "s_noise": 1.01}]

ALGORITHM = axis("algorithm_type")[:4]  # the fifth is foreign to all but one class, as half of the solver types are
MIDDLE: list[Config] = [{"solver_type": "midpoint"}, {"solver_type": "heun"}]
BH: list[Config] = [{"solver_type": "bh1"}, {"solver_type": "bh2"}]

# Axes that are swept together. Of each a class takes what it has keys for; one that has none for the first is left out.
TOGETHER: dict[str, Sequence[Sequence[Config]]] = {
    "spacing": (axis("prediction_type"), axis("timestep_spacing"), axis("beta_schedule")),
    "offset": (axis("steps_offset"), axis("timestep_spacing"), axis("set_alpha_to_one"), axis("skip_prk_steps")),
    "count": (axis("num_train_timesteps"), axis("timestep_spacing"), RESPACED),
    "solver": (axis("solver_order"), ALGORITHM, MIDDLE, FINAL, ENDING),
    "unipc": (axis("predict_x0"), axis("solver_order"), BH, optional("disable_corrector"), FINAL, ENDING),
    "respacing": (RESPACED, FINAL, axis("beta_schedule")[1:], axis("solver_order")),
    "ending": (RESPACED, FINAL, ENDING, ALGORITHM),
    "range": (axis("sigma_min"), optional("sigma_max"), FINAL, RESPACED),
    "levels": (RESPACED, axis("timestep_spacing"), axis("interpolation_type"), axis("timestep_type")),
    "trained": (axis("trained_betas"), RESPACED, axis("prediction_type")),
    "flow": (FLOW, optional("flow_shift"), FINAL, axis("solver_order")[1:], ALGORITHM, axis("predict_x0")),
    "zero": (ZERO, axis("timestep_spacing"), axis("beta_schedule"), RESPACED),
    "held": (HELD, axis("prediction_type"), ALGORITHM, SHARES),
    "learned": (axis("variance_type"), axis("prediction_type"), [{}, *HELD], ALGORITHM[::2]),
    "clipped": (axis("lambda_min_clipped"), axis("timestep_spacing"), axis("beta_schedule"), RESPACED),
    "churn": (CHURNED, axis("prediction_type"), RESPACED, axis("timestep_type")),
    "distilled": (optional("original_inference_steps"), optional("timestep_scaling"), SHARES),
    "flow_match": (axis("shift"), optional("shift_terminal"), RESPACED, optional("stochastic_sampling"), CHURNED),
    "edm": (axis("sigma_schedule"), optional("sigma_data"), optional("rho"), axis("prediction_type"), FINAL),
}


def alone(class_name: str) -> Iterator[Config]:
    """Each value by itself."""
    keys = takes(class_name)
    yield {}
    yield from (config for config in axis(*VALUES) if keys.issuperset(config))


def together(class_name: str, group: str) -> list[Config]:
    """All that a group of axes says to a class."""
    keys = takes(class_name)
    axes = [[config for config in axis if keys.issuperset(config)] for axis in TOGETHER[group]]
    if not any(axes[0]) or sum(any(axis) for axis in axes) < 2:
        return []
    return [{key: value for part in parts for key, value in part.items()} for parts in product(*filter(any, axes))]


class Without(NamedTuple):
    """Configs with which diffusers, or this package, has no result to compare."""

    classes: str  # those whose name begins so
    says: str  # in its error; "nan" where the result is not finite
    why: str
    config: Config
    shown: Config  # with which a test shows that it is still so
    steps: int

    def covers(self, class_name: str, config: Config, said: str) -> bool:
        """Whether this explains what was said."""
        full = {**KEYS[class_name], **config}
        asked = all(full.get(key) == value for key, value in self.config.items())
        return class_name.startswith(self.classes) and asked and self.says in said


def _none(classes: str, says: str, why: str, *, shown: Config | None = None, steps: int = 17, **config: Any) -> Without:
    return Without(classes, says, why, config, {**config, **(shown or {})}, steps)


_UNWRITTEN = "diffusers has not written it"
_NEITHER = "it has no result in diffusers either"
_TOO_EARLY = "diffusers checks the name before it changes it"
_ROOT = "sigma_down ** 2 = sigma_to ** 2 - sigma_up ** 2 falls below 0 in float32"
_NO_STEP = "the last step has length 0, or less by a rounding, by which diffusers divides or whose root it takes"
_COSINE: Config = {"beta_schedule": "squaredcos_cap_v2"}
_ZERO, _MIN = "zero", "sigma_min"
_FLOW: Config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "final_sigmas_type": _MIN}
_LEARNED = list(product(("learned", "learned_range"), ("v_prediction", "sample")))
_EPS, _SDE_EPS, _SDE = "dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"  # the first two keep eps
_DPM, _MULTI, _SINGLE = "DPMSolver", "DPMSolverMultistep", "DPMSolverSinglestep"

# What diffusers has no result for.
THEIRS = [
    _none("PNDM", "must be one of `epsilon` or `v_prediction`", _UNWRITTEN, prediction_type="sample"),
    *(
        _none(name, "not implemented yet: sample", _UNWRITTEN, prediction_type="sample")
        for name in ("EulerAncestral", "KDPM2Discrete", "KDPM2Ancestral", "DPMSolverSDE")
    ),
    _none(_DPM, "given as flow_prediction must be one of", _UNWRITTEN, algorithm_type=_EPS, **_FLOW),
    _none(_MULTI, "given as flow_prediction must be one of", _UNWRITTEN, algorithm_type=_SDE_EPS, **_FLOW),
    _none("UniPC", "given as flow_prediction must be one of", _UNWRITTEN, predict_x0=False, **_FLOW),
    _none("EDMDPMSolver", "UnboundLocalError", _UNWRITTEN, algorithm_type=_SDE, solver_order=3),
    *(
        _none(name, "not supported for `algorithm_type`", _TOO_EARLY, algorithm_type="deis", final_sigmas_type=_ZERO)
        for name in (_DPM, "EDMDPMSolver")
    ),
    *(
        _none(_DPM, "The size of tensor", "it splits what predicts eps alone", variance_type=kind, prediction_type=one)
        for kind, one in _LEARNED
    ),
    _none("UniPC", "nan", "h is infinite there, times 0", solver_type="bh1", final_sigmas_type=_ZERO),
    _none("KDPM2Ancestral", "nan in the times", _ROOT, shown=_COSINE, steps=4),
    *(
        _none(_MULTI, "nan", _NO_STEP, solver_order=3, final_sigmas_type=_MIN, steps=25, **{f"use_{kind}_sigmas": True})
        for kind in ("exponential", "beta")
    ),
    *(
        _none(name, "nan", _NO_STEP, algorithm_type=one, final_sigmas_type=_MIN, steps=5, **{how: True})
        for name, one, how in (
            (_MULTI, _SDE, "use_karras_sigmas"),
            (_MULTI, _SDE_EPS, "use_karras_sigmas"),
            (_SINGLE, _SDE, "use_karras_sigmas"),
            (_MULTI, _SDE, "use_lu_lambdas"),
            (_MULTI, _SDE_EPS, "use_lu_lambdas"),
        )
    ),
]
# What this package refuses.
OURS = [
    _none("", "has no flow", "other levels than a flow's cannot be read so", prediction_type="flow_prediction"),
    _none("PNDM", "too few steps for Runge-Kutta", _NEITHER, skip_prk_steps=False, steps=2),
    _none("UniPC", "has its own last level", "diffusers stretches for Cosmos alone", **axis("shift_terminal")[0]),
    _none("FlowMatchEuler", "no finite plan", "0 / 0 in diffusers too", **axis("shift_terminal")[0], steps=1),
    _none("IPNDM", "has its own betas", "diffusers reads them as its sigmas", **axis("trained_betas")[0]),
    _none("EDM", "conditions its network otherwise", _NEITHER, prediction_type="sample"),
    *(_none("EDM", "is not for this class", _NEITHER, algorithm_type=one) for one in (_EPS, _SDE_EPS)),
    *(
        _none(_DPM, "has no eps at sigma 0", _NEITHER, algorithm_type=one, final_sigmas_type=_ZERO)
        for one in (_EPS, _SDE_EPS)
    ),
    _none(_DPM, "has no third order", _NEITHER, algorithm_type=_SDE_EPS, solver_order=3, final_sigmas_type=_MIN),
    _none(_SINGLE, "is not singlestep", _NEITHER, algorithm_type=_SDE_EPS, final_sigmas_type=_MIN),
    *(_none("DEIS", "is not for this class", _NEITHER, algorithm_type=one) for one in (_SDE, _SDE_EPS)),
    _none("UniPC", "has no eps at sigma 0", _NEITHER, predict_x0=False, final_sigmas_type=_ZERO),
    *(
        _none("UniPC", "has no limit", _NEITHER, lower_order_final=False, solver_order=order, final_sigmas_type=_ZERO)
        for order in (2, 3)
    ),
    *(
        _none(name, "zero terminal SNR", _NEITHER, rescale_betas_zero_snr=True, prediction_type="epsilon")
        for name in ("LCM", "TCD")
    ),
]
