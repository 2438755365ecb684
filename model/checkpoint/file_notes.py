"""What a single file says of how it was trained: in marker tensors, in its metadata, in its name."""

import contextlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ldmrt.model.weights.lazy import Lazy
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.samplers.config import KEYS
from ldmrt.runtime.samplers.registry import find_scheduler

PREDICTIONS = {
    "epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction",
    "v-prediction": "v_prediction", "vpred": "v_prediction", "sample": "sample", "x0": "sample",
}  # fmt: skip
# Few-step models, by the words in names of files and titles. "Hyper" is one only where nothing else can be meant.
FEW_STEPS = re.compile(
    r"turbo|lightning|hyper[-_ ]?(sd|xl|flux|\d+[-_ ]?step)|(?<![a-z])hyper(?![a-z]|[-_ ]?real)", re.I
)
SD2_BASE = 875000  # training steps of the model of 512 pixels, by which diffusers knows it
MARKERS = ("v_pred", "ztsnr", "global_step", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
# Tables of the noise schedule and buffers, which follow from configs: no weights, and no news.
TABLES = re.compile(
    r"(model\.|denoiser\.)?((sqrt_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recip(m1)?_alphas_cumprod|betas|logvar"
    r"|log_one_minus_alphas_cumprod|posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|scale_factor"
    r"|sigmas|log_sigmas|epoch|step|iteration)|(.*\.)?embeddings\.position_ids"
    r"|(cond_stage_model|conditioner\.embedders\.\d)\.(model\.|transformer\.)?(logit_scale|attn_mask)"
)
# What training leaves in files beside the networks that it trains.
TRAINING = re.compile(
    r"(.*\.)?(model_ema|ema_model|ema|loss|embedding_manager|optimizers?|optimizer_states?|lr_schedulers?|callbacks)\..*"
    r"|edm_.*|(.*\.)?(exp_avg(_sq)?|momentum_buffer|max_exp_avg_sq)"
    r"|(cond_stage_model|conditioner\.embedders\.\d)\..*\b(visual|vision_model|visual_projection)\..*"
)


@dataclass(frozen=True)
class FileNotes:
    """What a file says beside its weights. None is what it does not say."""

    name: str
    prediction: str | None
    zero_snr: bool
    sigmas: Mapping[str, float] = field(default_factory=dict)  # sigma_min, sigma_max of a continuous schedule (EDM)
    few_steps: str | None = None  # the name or title that says so

    @classmethod
    def read(cls, path: Path, tensors: Mapping[str, Lazy], notes: Mapping[str, Any]) -> "FileNotes":
        """From the tensors of a file and its metadata."""
        sigmas = {
            name: value
            for name in ("sigma_min", "sigma_max")
            if (value := _number(tensors.get(f"edm_vpred.{name}"))) is not None
        }
        prediction = _prediction(path, tensors, notes)
        if _number(tensors.get("global_step")) == SD2_BASE or notes.get("global_step") == SD2_BASE:
            prediction = prediction or "epsilon"
        zero_snr = "ztsnr" in tensors or _true(notes.get("ss_zero_terminal_snr"))
        return cls(path.name, prediction, zero_snr, sigmas if "sigma_max" in sigmas else {}, few_steps(path, notes))

    def scheduler(self, own: Mapping[str, Any], asked: str | None) -> dict[str, Any]:
        """A family's scheduler config, as the file wants it; `asked` is the prediction type that the user says."""
        config = dict(own)
        prediction = asked or self.prediction or ("epsilon" if self.few_steps and "prediction_type" in own else None)
        if prediction is not None:
            config["prediction_type"] = prediction
        if self.sigmas and asked is None:
            return {
                "_class_name": "EDMEulerScheduler",
                "sigma_data": 1.0,
                "prediction_type": "v_prediction",
                **self.sigmas,
            }
        if self.zero_snr and config.get("prediction_type") == "v_prediction":
            if "rescale_betas_zero_snr" not in KEYS[config["_class_name"]]:
                config["_class_name"] = "DDIMScheduler"
            config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return config if self.few_steps is None else for_few_steps(config, self.few_steps)


def few_steps(path: Path, notes: Mapping[str, Any]) -> str | None:
    """The name or title that says that a model was distilled to few steps, if one does."""
    said = (path.stem, str(notes.get("modelspec.title", "")), str(notes.get("ss_output_name", "")))
    return next((text for text in said if FEW_STEPS.search(text)), None)


def few_steps_file(path: Path) -> str | None:
    """The same of a file of its own, such as a LoRA, whose weights are not looked at."""
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
    except Exception:  # no safetensors: whoever reads it says so
        notes = {}
    return few_steps(path, notes)


def for_few_steps(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A scheduler's config for a model of few steps by its `name`: timesteps are spaced from the end.

    A class that has no such key stays as it is, as where diffusers makes a scheduler of a config. Both are said.
    """
    scheduler, _ = find_scheduler(config)
    said = f"{name!r} is a model of few steps by its name"
    if "timestep_spacing" not in KEYS[scheduler.class_name]:
        hint = "--scheduler-config chooses another"
        warn(f"{said}, but {scheduler.class_name} has no timestep_spacing and stays as it is; {hint}")
        return dict(config)
    if config.get("timestep_spacing") != "trailing":
        warn(f"{said}: timestep_spacing is trailing; --set chooses another")
    return {**config, "timestep_spacing": "trailing"}


def warn(message: str) -> None:
    """Warn of what a file says."""
    warnings.warn(message, LdmrtWarning, stacklevel=3)


def without_leftovers(tensors: Mapping[str, Lazy], path: Path, beside: set[str]) -> dict[str, Lazy]:
    """The tensors that belong to networks. One warning counts what else there is: what training left, and `beside`."""
    aside = sorted(key for key in tensors if key in beside or (TRAINING.fullmatch(key) and key not in MARKERS))
    if aside:
        named = ", ".join(aside[:2]) + (", ..." if len(aside) > 2 else "")
        message = f"{path.name}: {len(aside)} tensors that belong to no network are left aside: {named}"
        warnings.warn(message, LdmrtWarning, stacklevel=2)
    gone = {*aside, *MARKERS}
    return {key: tensor for key, tensor in tensors.items() if key not in gone and not TABLES.fullmatch(key)}


def check_latents(tensors: Mapping[str, Lazy], path: Path) -> None:
    """Refuse a file whose latents are shifted and scaled channel by channel (Playground 2.5)."""
    for name, neutral in (("edm_mean", 0.0), ("edm_std", 1.0)):
        if name in tensors and tensors[name].dtype and not bool((tensors[name].read(torch.float32) == neutral).all()):
            problem = f"{path} normalises latents by {name}"
            raise LdmrtError("vae", problem, expected="one scaling factor", found="a model like Playground 2.5")


def _prediction(path: Path, tensors: Mapping[str, Lazy], notes: Mapping[str, Any]) -> str | None:
    if "v_pred" in tensors or _true(notes.get("ss_v_parameterization")):
        return "v_prediction"
    if (said := notes.get("modelspec.prediction_type")) is None:
        return None
    if (known := PREDICTIONS.get(str(said).strip().lower())) is None:
        message = f"{path.name}: unknown modelspec.prediction_type {str(said)[:40]!r} is left aside"
        warnings.warn(message, LdmrtWarning, stacklevel=2)
    return known


def _true(value: Any) -> bool:
    return str(value).lower() in ("true", "1")


def _number(tensor: Lazy | None) -> float | None:
    """The value of a tensor that holds one number."""
    if tensor is not None and torch.Size(tensor.shape).numel() == 1:
        with contextlib.suppress(AssertionError):  # of a dtype that is not read
            return float(tensor.view().reshape(()).item())
    return None
