"""Read what a single file says of its training: in marker tensors, in its metadata, in its name."""

import contextlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open

from ldmrt.model.weights.lazy import Lazy
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.samplers.config import KEYS, Config
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
# Tensors that training leaves in files beside the networks that it trains.
TRAINING = re.compile(
    r"(.*\.)?(model_ema|ema_model|ema|loss|embedding_manager|optimizers?|optimizer_states?|lr_schedulers?|callbacks)\..*"
    r"|edm_.*|(.*\.)?(exp_avg(_sq)?|momentum_buffer|max_exp_avg_sq)"
    r"|(cond_stage_model|conditioner\.embedders\.\d)\..*\b(visual|vision_model|visual_projection)\..*"
)


@dataclass(frozen=True)
class FileNotes:
    """Holds what a file says beside its weights; None where it says nothing."""

    name: str
    prediction: str | None
    zero_snr: bool
    sigmas: Mapping[str, float] = field(default_factory=dict)  # sigma_min, sigma_max of a continuous schedule (EDM)
    few_steps: str | None = None  # the name or title that says so

    @classmethod
    def read(cls, path: Path, tensors: Mapping[str, Lazy], notes: Mapping[str, object]) -> "FileNotes":
        """Read the notes in the tensors of a file, its name and its metadata."""
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

    def scheduler(self, own: Config, prediction_type: str | None) -> JsonObject:
        """Adapt the scheduler config of a file's family to what the file says.

        Args:
            own: The family's config.
            prediction_type: The prediction type that the user states, which comes before what the file says.
        """
        config = dict(own)
        usual = "epsilon" if self.few_steps and "prediction_type" in own else None
        prediction = prediction_type or self.prediction or usual
        if prediction is not None:
            config["prediction_type"] = prediction
        if self.sigmas and prediction_type is None:
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


def few_steps(path: Path, notes: Mapping[str, object]) -> str | None:
    """Return the name or title that says that a model was distilled to few steps, if one does."""
    titles = (path.stem, str(notes.get("modelspec.title", "")), str(notes.get("ss_output_name", "")))
    return next((title for title in titles if FEW_STEPS.search(title)), None)


def few_steps_file(path: Path) -> str | None:
    """Do the same for a file such as a LoRA, of which only the metadata is read."""
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
    except Exception:  # no safetensors: reading its weights reports that
        notes = {}
    return few_steps(path, notes)


def for_few_steps(config: Config, name: str) -> JsonObject:
    """Adapt a scheduler's config to a model of few steps by its `name`: timesteps are spaced from the end.

    A class that has no such key stays as it is, as diffusers has it. A warning tells either.
    """
    scheduler, _ = find_scheduler(config)
    reason = f"{name!r} is a model of few steps by its name"
    if "timestep_spacing" not in KEYS[scheduler.class_name]:
        hint = "--scheduler-config chooses another"
        warn(f"{reason}, but {scheduler.class_name} has no timestep_spacing and stays as it is; {hint}")
        return dict(config)
    if config.get("timestep_spacing") != "trailing":
        warn(f"{reason}: timestep_spacing is trailing; --set chooses another")
    return {**config, "timestep_spacing": "trailing"}


def warn(message: str) -> None:
    """Warn the caller's caller of a choice that a file's notes caused."""
    warnings.warn(message, LdmrtWarning, stacklevel=3)


def without_leftovers(tensors: Mapping[str, Lazy], path: Path, beside: set[str]) -> dict[str, Lazy]:
    """Return the tensors that belong to networks; one warning counts the others, of training or in `beside`."""
    aside = sorted(key for key in tensors if key in beside or (TRAINING.fullmatch(key) and key not in MARKERS))
    if aside:
        named = ", ".join(aside[:2]) + (", ..." if len(aside) > 2 else "")
        message = f"{path.name}: {len(aside)} tensors that belong to no network are skipped: {named}"
        warnings.warn(message, LdmrtWarning, stacklevel=2)
    gone = {*aside, *MARKERS}
    return {key: tensor for key, tensor in tensors.items() if key not in gone and not TABLES.fullmatch(key)}


def check_latents(tensors: Mapping[str, Lazy], path: Path) -> None:
    """Refuse a file whose latents are shifted and scaled channel by channel (Playground 2.5)."""
    for name, neutral in (("edm_mean", 0.0), ("edm_std", 1.0)):
        if name in tensors and tensors[name].dtype and not bool((tensors[name].read(torch.float32) == neutral).all()):
            problem = f"{path} normalises latents by {name}"
            raise LdmrtError("vae", problem, expected="one scaling factor", found="a model like Playground 2.5")


def _prediction(path: Path, tensors: Mapping[str, Lazy], notes: Mapping[str, object]) -> str | None:
    """Return the prediction type that a file states, if it does."""
    if "v_pred" in tensors or _true(notes.get("ss_v_parameterization")):
        return "v_prediction"
    if (stated := notes.get("modelspec.prediction_type")) is None:
        return None
    if (known := PREDICTIONS.get(str(stated).strip().lower())) is None:
        message = f"{path.name}: unknown modelspec.prediction_type {str(stated)[:40]!r} is ignored"
        warnings.warn(message, LdmrtWarning, stacklevel=2)
    return known


def _true(value: object) -> bool:
    """Tell whether a note is true, as the strings of a safetensors header spell it."""
    return str(value).lower() in ("true", "1")


def _number(tensor: Lazy | None) -> float | None:
    """Return the value of a tensor that holds one number; None for any other."""
    if tensor is not None and torch.Size(tensor.shape).numel() == 1:
        with contextlib.suppress(AssertionError):  # of a dtype that is not read
            return float(tensor.view().reshape(()).item())
    return None
