"""Choose the betas of a noise schedule that a training from nothing learns on, and its scheduler is written with."""

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.samplers.config import CONFIG, KEYS, Config

from .levels import DDPM
from .objective import FLOW

# Of Rombach et al. 2022; the others have diffusers' default.
RANGES = {"scaled_linear": (CONFIG["beta_start"], CONFIG["beta_end"])}


def with_betas(scheduler: Config, beta_schedule: str | None, *, zero_terminal_snr: bool = False) -> JsonObject:
    """Return a scheduler's config with other betas, which diffusers draws with too.

    Args:
        scheduler: The config, of a class in `KEYS`.
        beta_schedule: One of the samplers' `BETAS`; None leaves the config's own. diffusers knows `sigmoid` in
            `DDPMScheduler` alone, which then takes the place of another class.
        zero_terminal_snr: Whether betas are rescaled so that the last timestep is noise alone (Lin et al. 2024,
            arXiv:2305.08891, algorithm 1). Timesteps are then spaced from the last one, where drawing has to begin.

    Raises:
        LdmrtError: The config is that of a flow, which has no betas; or noise would be predicted of noise alone.
    """
    asked = ["--beta-schedule"] * (beta_schedule is not None) + ["--zero-terminal-snr"] * zero_terminal_snr
    prediction = scheduler["prediction_type"]
    if asked and prediction == FLOW:
        problem = f"{asked[0]} cannot be combined with --prediction {FLOW}: a flow has no betas"
        raise LdmrtError("train", problem, hint=f"no {asked[0]}, or --prediction v_prediction")
    out = dict(scheduler)
    if beta_schedule is not None and beta_schedule != scheduler["beta_schedule"]:
        first, last = RANGES.get(beta_schedule, (KEYS[DDPM]["beta_start"], KEYS[DDPM]["beta_end"]))
        out |= {"beta_schedule": beta_schedule, "beta_start": first, "beta_end": last}
    if beta_schedule == "sigmoid":
        known = {name: value for name, value in out.items() if name in KEYS[DDPM]}
        out = {"_class_name": DDPM, "variance_type": "fixed_small", **known}
    if zero_terminal_snr:
        if prediction == "epsilon":
            problem = "--zero-terminal-snr cannot be combined with --prediction epsilon: the last step is noise alone"
            raise LdmrtError("train", problem, hint="--prediction v_prediction")
        out |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return out


def differing_betas(scheduler: Config, usual: Config) -> dict[str, object]:
    """Return what a resumed run must have in common with the saved one: its betas, or None where they are the usual."""
    keys = {"beta_schedule": "beta_schedule", "zero_terminal_snr": "rescale_betas_zero_snr"}
    return {name: None if (value := scheduler.get(key)) == usual.get(key) else value for name, key in keys.items()}
