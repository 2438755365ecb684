"""The keys that a scheduler_config.json of diffusers may have, by class, with the value that a missing one means."""

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.nearest import suggestion

Config = Mapping[str, Any]  # a scheduler_config.json, or keys of one: values of any kind JSON has
LARGEST = 10**6  # timesteps of training: diffusers' models have 1000

_TRAIN = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
_TRAIN |= {"trained_betas": None, "prediction_type": "epsilon"}
_LATE = {"beta_start": 0.00085, "beta_end": 0.012}
_SPACED = {"timestep_spacing": "linspace", "steps_offset": 0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_SNR = {"rescale_betas_zero_snr": False}
_RESPACED = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_RANGE = {"sigma_min": None, "sigma_max": None}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential"}
_DYNAMIC = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_END = {"final_sigmas_type": "zero"}
_WHOLE = _TRAIN | _LEADING | _SNR | _CLIP | _DYNAMIC
_EARLY = _TRAIN | _LATE | _SPACED | _RESPACED
_DISTILLED = _WHOLE | _LATE | {"beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": True}
_DISTILLED |= {"original_inference_steps": 50, "timestep_scaling": 10.0}
_HIGH = _DYNAMIC | {"solver_order": 2, "lower_order_final": True}
_DPM = _HIGH | _END | {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
_SINGLE = _TRAIN | _RESPACED | _FLOW | _DPM | {"variance_type": None, "lambda_min_clipped": -math.inf}
_EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "rho": 7.0}
_EDM |= {"num_train_timesteps": 1000, "prediction_type": "epsilon"} | _END
_FLOWS = {"num_train_timesteps": 1000, "shift": 1.0}
_DYNAMIC_SHIFT: Config = {
    **{"use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15, "time_shift_type": "exponential"},
    **{"base_image_seq_len": 256, "max_image_seq_len": 4096, "shift_terminal": None, "invert_sigmas": False},
}
# The keys that diffusers never reads where the shift is dynamic, and where it is not: they may be null.
_UNREAD = {True: ("shift",), False: ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")}
# Arguments of diffusers' `step`, which a config may hold here.
CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}
# Whether a corrector's step is of each image, or of the batch as in diffusers; its config has no key for it.
STEP_BY = {"step_by": "image"}

KEYS: dict[str, Config] = {
    "DDIMScheduler": _WHOLE | {"set_alpha_to_one": True},
    "DDPMScheduler": _WHOLE | {"variance_type": "fixed_small"},
    "PNDMScheduler": _TRAIN | _LEADING | {"skip_prk_steps": False, "set_alpha_to_one": False},
    "LMSDiscreteScheduler": _TRAIN | _SPACED | _RESPACED,
    "EulerDiscreteScheduler": _TRAIN | _SPACED | _SNR | _RESPACED | _RANGE | _END | CHURN
    | {"interpolation_type": "linear", "timestep_type": "discrete"},
    "EulerAncestralDiscreteScheduler": _TRAIN | _SPACED | _SNR,
    "HeunDiscreteScheduler": _EARLY | _CLIP | CHURN | {"clip_sample": False},
    "KDPM2DiscreteScheduler": _EARLY,
    "KDPM2AncestralDiscreteScheduler": _EARLY,
    "DPMSolverSDEScheduler": _EARLY | {"noise_sampler_seed": None},
    "DPMSolverMultistepScheduler": _SINGLE | _SPACED | _SNR | {"euler_at_final": False, "use_lu_lambdas": False},
    "DPMSolverSinglestepScheduler": _SINGLE | {"lower_order_final": False},
    "UniPCMultistepScheduler": _TRAIN | _SPACED | _SNR | _RESPACED | _RANGE | _FLOW | _HIGH | _END
    | {"solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None, "shift_terminal": None},
    "DEISMultistepScheduler": _TRAIN | _SPACED | _RESPACED | _FLOW | _HIGH
    | {"algorithm_type": "deis", "solver_type": "logrho"},
    "IPNDMScheduler": {"num_train_timesteps": 1000, "trained_betas": None},
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "EDMEulerScheduler": _EDM | CHURN,
    "EDMDPMSolverMultistepScheduler": _EDM | _DPM | {"euler_at_final": False},
    "ScoreSdeVeScheduler": {"num_train_timesteps": 2000, "snr": 0.15, "sigma_min": 0.01, "sigma_max": 1348.0,
                            "sampling_eps": 1e-5, "correct_steps": 1} | STEP_BY,
    "ScoreSdeVpScheduler": {"num_train_timesteps": 2000, "beta_min": 0.1, "beta_max": 20.0, "sampling_eps": 1e-3},
    "FlowMatchEulerDiscreteScheduler": {**_FLOWS, **_DYNAMIC_SHIFT, **_RESPACED, "stochastic_sampling": False},
    "FlowMatchHeunDiscreteScheduler": _FLOWS | CHURN,
}  # fmt: skip
KNOWN = {key for keys in KEYS.values() for key in keys}

# The values that a key may have, for keys with few.
CHOICES: Mapping[str, Sequence[object]] = {
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction"),
    "solver_order": (1, 2, 3),
    "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", "deis"),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"),
    "interpolation_type": ("linear", "log_linear"),
    "timestep_type": ("discrete", "continuous"),
    "sigma_schedule": ("karras", "exponential"),
    "time_shift_type": ("exponential", "linear"),
    "invert_sigmas": (False,),
    "solver_p": (None,),
    "step_by": ("image", "batch"),
}
# Numbers that must be above 0, and those that must not be below.
_POSITIVE = (
    "num_train_timesteps",
    "original_inference_steps",
    "clip_sample_range",
    "sample_max_value",
    "flow_shift",
    "shift",
    "dynamic_thresholding_ratio",
    "rho",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "timestep_scaling",
    "snr",
)
_NOT_NEGATIVE = (
    *("beta_start", "beta_end", "beta_min", "beta_max", "steps_offset", "sampling_eps", "correct_steps"),
    "shift_terminal",
    *CHURN,
)
# Values that one class of a family writes and another takes for its own default.
FOREIGN = {"midpoint": ("logrho", "bh1", "bh2"), "bh2": ("midpoint", "heun", "logrho"), "dpmsolver++": ("deis",)}
FOREIGN |= {"logrho": ("midpoint", "heun", "bh1", "bh2"), "deis": ("dpmsolver", "dpmsolver++")}


def prediction_type(config: Config) -> str:
    """Return what a network predicts for the scheduler of a config; the default is diffusers'."""
    name = str(config.get("_class_name"))
    own = "score" if name == "ScoreSdeVeScheduler" else "flow_prediction" if name.startswith("FlowMatch") else ""
    return own or str(config.get("prediction_type") or "epsilon")


def resolve(config: Config, class_name: str) -> JsonObject:
    """Complete a config with the defaults of a class, and check it.

    Args:
        config: Keys of any class; those that no class knows are named in a warning, those of other classes skipped.
        class_name: A key of `KEYS`.

    Returns:
        Every key of the class with its value.

    Raises:
        LdmrtError: A value is of a wrong kind, out of range or unknown, or values contradict one another.
    """
    if unknown := sorted(key for key in config if key not in KNOWN and not key.startswith("_")):
        warnings.warn(f"scheduler: unknown keys {', '.join(unknown)} are skipped", LdmrtWarning, stacklevel=3)
    out = {key: config.get(key, default) for key, default in KEYS[class_name].items()}
    out |= {key: False for key, value in out.items() if value is None and isinstance(KEYS[class_name][key], bool)}
    for key in _UNREAD[bool(out.get("use_dynamic_shifting"))] if "base_shift" in out else ():
        out[key] = KEYS[class_name][key] if out[key] is None else out[key]
    _check_kinds(out, class_name)
    _check_bounds(out)
    _check_choices(out, class_name)
    _check_contradictions(out, class_name)
    return out


def _check_kinds(c: Config, class_name: str) -> None:
    """Raise an `LdmrtError` for a value of another kind than its key's default, or below its least."""
    for key, value in c.items():
        if key not in CHOICES and not _fits(value, KEYS[class_name][key]):
            expected = type(KEYS[class_name][key]).__name__
            raise LdmrtError("scheduler", f"invalid {key}", expected=expected, found=repr(value))
        least = "above 0" if key in _POSITIVE else "0 or above" if key in _NOT_NEGATIVE else ""
        low = not isinstance(value, Real) or value < 0 or (value == 0 and key in _POSITIVE)
        if least and value is not None and low:
            raise LdmrtError("scheduler", f"invalid {key}", expected=f"a number {least}", found=value)


def _check_bounds(c: Config) -> None:
    """Raise an `LdmrtError` for a number above its largest."""
    bounds = {"dynamic_thresholding_ratio": 1, "num_train_timesteps": LARGEST, "sampling_eps": 1, "correct_steps": 100}
    bounds |= {"shift_terminal": 1}
    for key, most in (bounds | {"original_inference_steps": c["num_train_timesteps"]}).items():
        if (c.get(key) or 0) > most:
            raise LdmrtError("scheduler", f"invalid {key}", expected=f"at most {most}", found=c[key])


def _check_choices(out: JsonObject, class_name: str) -> None:
    """Raise an `LdmrtError` for an unknown value of a key with few; put the default for that of another class."""
    for key, choices in CHOICES.items():
        if key not in out:
            continue
        if out[key] not in choices:
            expected = ", ".join(str(choice) for choice in choices)
            problem = f"no {key} {out[key]!r} in {class_name}{suggestion(out[key], map(str, choices))}"
            raise LdmrtError("scheduler", problem, expected=expected)
        default = KEYS[class_name][key]
        out[key] = default if out[key] in FOREIGN.get(default, ()) else out[key]


def _fits(value: object, default: object) -> bool:
    """Tell whether a value is of the kind of a key's default; where that is None, a number or a list of numbers is."""
    if isinstance(default, (bool, str)):
        return isinstance(value, type(default))
    if isinstance(default, (list, tuple)) or (default is None and isinstance(value, (list, tuple))):
        return isinstance(value, (list, tuple)) and all(map(_is_number, value))
    if default is None:
        return value is None or _is_number(value)
    if isinstance(value, bool):
        return False
    return isinstance(value, Integral) if isinstance(default, int) else _is_number(value) or value == default


def _is_number(value: object) -> bool:
    """Tell whether a value is a finite number, also as a float; truth values are none."""
    largest = sys.float_info.max
    return isinstance(value, Real) and not isinstance(value, bool) and value <= largest and not value < -largest


LATE = ("DPM", "UniPC", "DEIS")  # solvers of flows among others
# Settings that contradict one another: a class (or all), its keys, what is wrong, what is expected.
CONTRADICTIONS: Sequence[tuple[str, Config, str, str]] = (
    ("", {"prediction_type": "flow_prediction", "use_flow_sigmas": False}, "has no flow", "use_flow_sigmas true"),
    *((name, {"use_dynamic_shifting": True}, "asks for the size of the image", "flow_shift") for name in LATE),
    ("EDM", {"prediction_type": "sample"}, "conditions its network otherwise", "epsilon or v_prediction"),
    ("DPM", {"algorithm_type": "dpmsolver", **_END}, "has no eps at sigma 0", "final_sigmas_type sigma_min"),
    ("DPM", {"algorithm_type": "sde-dpmsolver", **_END}, "has no eps at sigma 0", "final_sigmas_type sigma_min"),
    ("DPM", {"algorithm_type": "sde-dpmsolver", "solver_order": 3}, "has no third order", "solver_order 1 or 2"),
    ("DPMSolverSinglestep", {"algorithm_type": "sde-dpmsolver"}, "is not singlestep", "sde-dpmsolver++"),
    ("EDM", {"algorithm_type": "dpmsolver"}, "is not for this class", "dpmsolver++"),
    ("EDM", {"algorithm_type": "sde-dpmsolver"}, "is not for this class", "sde-dpmsolver++"),
    ("DEIS", {"algorithm_type": "sde-dpmsolver"}, "is not for this class", "deis"),
    ("DEIS", {"algorithm_type": "sde-dpmsolver++"}, "is not for this class", "deis"),
    ("UniPC", {"predict_x0": False, **_END}, "has no eps at sigma 0", "final_sigmas_type sigma_min"),
    (
        "UniPC",
        {"lower_order_final": False, "solver_order": 2, **_END},
        "has no limit at sigma 0",
        "lower_order_final true",
    ),
    (
        "UniPC",
        {"lower_order_final": False, "solver_order": 3, **_END},
        "has no limit at sigma 0",
        "lower_order_final true",
    ),
)


def _check_contradictions(c: Config, class_name: str) -> None:
    """Raise an `LdmrtError` for settings that contradict one another."""
    for prefix, settings, problem, expected in CONTRADICTIONS:
        if class_name.startswith(prefix) and all(c.get(key, False) == value for key, value in settings.items()):
            shown = ", ".join(f"{key} {value}" for key, value in settings.items())
            raise LdmrtError("scheduler", f"{shown} {problem}", expected=expected, found=class_name)
    if c.get("shift_terminal") is not None and class_name == "UniPCMultistepScheduler":
        raise LdmrtError("scheduler", "UniPCMultistepScheduler has its own last level", expected="no shift_terminal")
    if c.get("trained_betas") is not None and class_name == "IPNDMScheduler":
        raise LdmrtError("scheduler", "IPNDMScheduler has its own betas", expected="no trained_betas")


CONFIG: Config = {  # the noise schedule of Stable Diffusion
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
}
