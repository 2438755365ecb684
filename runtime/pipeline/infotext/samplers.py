"""Translate AUTOMATIC1111's names of samplers and schedulers into everyday names and settings.

A sampler stands here where the solver is the same, and a scheduler for it where the noise levels are, to a timestep.
Their names are of version 1.10: `modules/sd_samplers_kdiffusion.py`, `sd_samplers_timesteps.py`, `sd_schedulers.py`
of https://github.com/AUTOMATIC1111/stable-diffusion-webui. Not here are samplers that drop the level before the last
(DPM2, DPM2 a, DPM++ 3M SDE), and those without a twin (DPM++ 2S a, DPM fast, DPM adaptive, Restart). DDIM and PLMS
also take the last step, from timestep 1, which the web UI leaves out; LCM has diffusers' choice of the 50 timesteps
that such models are distilled on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.samplers.config import KEYS
from ldmrt.runtime.samplers.registry import SCHEDULERS, SPACINGS

Spacings = Mapping[str, tuple[str, Mapping[str, Any]]]
_EVEN, _TRAILING = {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}
# How each scheduler of AUTOMATIC1111 is asked for: by the end of an everyday name, and by settings.
RESPACED: Spacings = {"Karras": ("_karras", {}), "Exponential": ("_exponential", {}), "Beta": ("_beta", {})}
# diffusers' "linspace" is k-diffusion's own spacing for solvers that reach level 0 by a step of their own; those that
# leave out the last of N + 1 timesteps have with it what AUTOMATIC1111 calls SGM Uniform.
_EARLY: Spacings = {"Uniform": ("", _EVEN), "SGM Uniform": ("", _TRAILING)}
_LATE: Spacings = {"SGM Uniform": ("", _EVEN)}
_STRIDED = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}


@dataclass(frozen=True)
class Sampler:
    """Describes a sampler of AUTOMATIC1111.

    Attributes:
        scheduler: The everyday name of the same solver.
        automatic: The scheduler that "Automatic" means.
        spacings: The schedulers that are the same here; empty where AUTOMATIC1111 heeds none.
        settings: Of the scheduler's config.
        aliases: AUTOMATIC1111's other names for it.
    """

    scheduler: str
    automatic: str = ""
    spacings: Spacings = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


_HEUN = {"solver_type": "heun"}
_UNIPC = {"solver_type": "bh1", "solver_order": 3, "timestep_spacing": "linspace", "final_sigmas_type": "sigma_min"}
_SDE: Spacings = {**RESPACED, "Uniform": ("", _EVEN), "SGM Uniform": ("", _TRAILING)}
SAMPLERS: Mapping[str, Sampler] = {
    "Euler a": Sampler("euler_a", "Uniform", _EARLY, aliases=("k_euler_a", "k_euler_ancestral")),
    "Euler": Sampler("euler", "Uniform", {**_EARLY, **RESPACED}, aliases=("k_euler",)),
    "LMS": Sampler("lms", "Uniform", {**_EARLY, **RESPACED}, aliases=("k_lms",)),
    "Heun": Sampler("heun", "Uniform", {**_EARLY, **RESPACED}, aliases=("k_heun",)),
    "DPM++ 2M": Sampler("dpmpp_2m", "Karras", {**_LATE, **RESPACED}, aliases=("k_dpmpp_2m",)),
    "DPM++ SDE": Sampler("dpmpp_sde", "Karras", _SDE, aliases=("k_dpmpp_sde",)),
    "DPM++ 2M SDE": Sampler("dpmpp_2m_sde", "Exponential", {**_LATE, **RESPACED}, aliases=("k_dpmpp_2m_sde",)),
    "DPM++ 2M SDE Heun": Sampler(
        "dpmpp_2m_sde", "Exponential", {**_LATE, **RESPACED}, _HEUN, aliases=("k_dpmpp_2m_sde_heun",)
    ),
    "DDIM": Sampler("ddim", settings=_STRIDED, aliases=("ddim",)),
    "PLMS": Sampler("plms", settings={"steps_offset": 1, "set_alpha_to_one": False}, aliases=("plms",)),
    "UniPC": Sampler("unipc", settings=_UNIPC, aliases=("unipc",)),
    "LCM": Sampler("lcm", aliases=("k_lcm",)),
}
LABELS = ("Automatic", "Uniform", "Karras", "Exponential", "SGM Uniform", "Beta")


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


_NAMED = {_plain(alias): name for name, sampler in SAMPLERS.items() for alias in (name, *sampler.aliases)}
_LABELLED = {_plain(label): label for label in LABELS} | {"sgmuniform": "SGM Uniform"}


def own_names() -> dict[str, str]:
    """Return the everyday names that are samplers too, each with the name of its solver."""
    spaced = {
        f"{name}_{kind}": name
        for name, scheduler in SCHEDULERS.items()
        for kind in SPACINGS
        if f"use_{kind}_sigmas" in KEYS[scheduler.class_name]
    }
    return {**{name: name for name in SCHEDULERS}, **spaced}


OWN = own_names()


def translated(name: str, label: str | None) -> tuple[str, dict[str, Any]]:
    """Return the everyday name and the settings of a sampler with a scheduler.

    Args:
        name: A name of AUTOMATIC1111, also with a scheduler behind it as older versions had it ("DPM++ 2M Karras"); or
            an everyday name, which has the settings of the model.
        label: A scheduler, by its label or its name; None for "Automatic".

    Raises:
        InvalidRequest: Either is unknown, or the two together are not here.
    """
    given = _LABELLED.get(_plain(label or "Automatic"))
    if given is None:
        problem = f"unknown scheduler {label!r:.50}{suggestion(label, LABELS)}"
        raise InvalidRequest("scheduler", problem, expected=", ".join(LABELS))
    if name in OWN and _plain(name) not in _NAMED:
        return _own(name, given)
    base, behind = _split(name)
    if base is None:
        names = OWN if "_" in name else SAMPLERS
        problem = f"unknown sampler {name!r:.50}{suggestion(name, names)}"
        raise InvalidRequest("sampler_name", problem, expected=", ".join(SAMPLERS))
    sampler = SAMPLERS[base]
    if not sampler.spacings:  # as in AUTOMATIC1111, whose samplers of timesteps heed no scheduler
        return sampler.scheduler, dict(sampler.settings)
    wanted = behind or given if given == "Automatic" else given
    wanted = sampler.automatic if wanted == "Automatic" else wanted
    if wanted not in sampler.spacings:
        raise InvalidRequest("scheduler", f"no {wanted} for {base}", expected=", ".join(sampler.spacings))
    end, settings = sampler.spacings[wanted]
    return sampler.scheduler + end, {**sampler.settings, **settings}


def _split(name: str) -> tuple[str | None, str]:
    """Return the sampler that a name means, and the scheduler behind it; "" where there is none."""
    plain = _plain(name)
    if plain in _NAMED:
        return _NAMED[plain], ""
    for label in ("Karras", "Exponential"):
        if plain.endswith(f" {label.casefold()}"):
            return _NAMED.get(plain.removesuffix(f" {label.casefold()}")), label
    return None, ""


def _own(name: str, label: str) -> tuple[str, dict[str, Any]]:
    """Return an everyday name with a scheduler behind it."""
    if label == "Automatic":
        return name, {}
    spaced = f"{name}_{label.casefold()}"
    if spaced not in OWN:
        raise InvalidRequest("scheduler", f"no {label} for {name}", expected="Automatic")
    return spaced, {}


def heeds_eta(scheduler: str) -> bool:
    """Tell whether a sampler with an everyday name has a share of fresh noise to choose."""
    return SCHEDULERS[OWN[scheduler]].eta is not None


def draws_all_noise(scheduler: str) -> bool:
    """Tell whether the share of fresh noise is 1 and cannot be chosen here, though AUTOMATIC1111 can."""
    return OWN[scheduler].endswith("_sde")
