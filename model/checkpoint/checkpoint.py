"""A latent diffusion model: loaded from a folder in diffusers' layout, a single file or the hub, and saved."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldmrt.model.config import LARGEST, check_depth, to_config
from ldmrt.model.networks.autoencoder import Autoencoder, AutoencoderConfig
from ldmrt.model.networks.controlnet import ControlNet, ControlNetConfig
from ldmrt.model.networks.t2i_adapter import Adapter, AdapterConfig
from ldmrt.model.networks.unet import UNet, UNetConfig
from ldmrt.model.weights.weight_files import STEMS
from ldmrt.model.weights.weights import Tensors, fill, match, write
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.files.hub import is_hub_name
from ldmrt.runtime.files.reading import read_json
from ldmrt.runtime.files.recognise import ADAPTER, BUNDLE, CHECKPOINT, CONTROLNET, LORA, refuse_other
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.samplers.registry import plan_from_config
from ldmrt.runtime.samplers.settings import with_settings
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer, token_count

from . import hub, single_file
from .folder import INDEX, TEXT, Source, part_of_folder, read_folder
from .outdated import current_scheduler, current_size
from .single_part import controlnet_source, with_part

Dtype = torch.dtype | Mapping[str, torch.dtype | None] | None
WEIGHTS, TEXT_WEIGHTS = f"{STEMS[0]}.safetensors", f"{STEMS[1]}.safetensors"
PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
}
# What a text encoder's config may say of the program that ran it; the model is the same.
NOTES = {"dtype", "torch_dtype", "_name_or_path", "_attn_implementation", "attn_implementation", "return_dict"}
NOTES |= {"output_attentions", "output_hidden_states"}
NETWORKS: dict[str, tuple[Any, Any]] = {
    "UNet2DConditionModel": (UNet, UNetConfig),
    "AutoencoderKL": (Autoencoder, AutoencoderConfig),
    "ControlNetModel": (ControlNet, ControlNetConfig),
    "T2IAdapter": (Adapter, AdapterConfig),
}


@dataclass(frozen=True)
class Checkpoint:
    """The networks, the tokenizers' files and the scheduler's config, under the names of diffusers' folders.

    SDXL has two text encoders, its refiner only the second. `index` is what model_index.json says beside its parts.
    """

    unet: UNet
    vae: Autoencoder
    text_encoders: dict[str, Any]  # "text_encoder", "text_encoder_2": of transformers, as model_index.json says
    tokenizers: dict[str, dict[str, bytes]] = field(repr=False)  # "tokenizer", "tokenizer_2": file name -> content
    scheduler: dict[str, Any]
    index: dict[str, Any] = field(default_factory=lambda: dict(PIPELINE))
    controls: dict[str, Any] = field(default_factory=dict)  # ControlNets and adapters: "controlnet_canny" ...
    spare: Autoencoder | None = None  # one in float32, where `vae` is of halves that may overflow

    @property
    def networks(self) -> dict[str, Any]:
        """Every network by its folder's name."""
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders, **self.controls}

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write diffusers' layout; model_index.json comes last."""
        kinds = {name: class_of(network) for name, network in self.networks.items()}
        for name, network in self.networks.items():
            if kinds[name] in TEXT:
                save_text_encoder(folder / name, network, dtype)
            else:
                save_network(folder / name, network, to_config(kinds[name], network.config), dtype)
        for name, files in self.tokenizers.items():
            for file_name, content in files.items():
                with write_atomically(folder / name / file_name) as file:
                    file.write(content)
        write_json(folder / "scheduler" / "scheduler_config.json", self.scheduler)
        write_json(folder / INDEX, self.model_index())

    def model_index(self) -> dict[str, Any]:
        """What diffusers and optimum read first: which class each part is of."""
        kinds = {name: class_of(network) for name, network in self.networks.items()}
        parts = {name: ["transformers" if kind in TEXT else "diffusers", kind] for name, kind in kinds.items()}
        parts |= {name: ["transformers", "CLIPTokenizer"] for name in self.tokenizers}
        parts["scheduler"] = ["diffusers", self.scheduler["_class_name"]]
        return dict(sorted({**self.index, **parts}.items()))


def load(
    source: str | Path,
    *,
    variant: str | None = None,
    dtype: Dtype = torch.float32,
    tokenizer: str | Path | None = None,
    prediction_type: str | None = None,
    parts: Mapping[str, Path] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Read a folder in diffusers' layout, a single .safetensors or .ckpt file, or a model of the hub ("owner/name").

    Of several `variant`s of the weights the plain one is read, or the only one. Weights become `dtype`, which may be
    one for each network's name and "" for all others; None leaves them as they are stored. A single file needs a folder
    with the `tokenizer`; `prediction_type` is for models of which nothing says it. `parts` are folders or files of the
    "vae" and of text encoders that take the place of the checkpoint's own, if it has any; `scheduler` is a config in
    the place of its own, and `settings` are keys of the config that are to be others. Configs are checked before any
    weight is read.
    """
    path = Path(source)
    refuse_other("checkpoint", path, CHECKPOINT)
    if path.exists() and not path.is_dir():
        if variant is not None:
            raise LdmrtError("checkpoint", "a single file has no variants", found=variant)
        made = single_file.read_file(path, tokenizer, prediction_type, parts or ())
    else:
        if tokenizer is not None:
            raise LdmrtError("tokenizer", "is only asked for by a single file", found=source)
        if path.suffix in single_file.SUFFIXES and not path.exists():
            raise LdmrtError("checkpoint", f"no file {path}")
        if not path.exists() and is_hub_name(str(source)):
            path = hub.download(str(source), variant)
        made = read_folder(path, variant, parts or ())
        if prediction_type is not None:
            made = replace(made, scheduler={**made.scheduler, "prediction_type": prediction_type})
    for part, place in (parts or {}).items():
        made = with_part(made, part, Path(place), variant)
    config = current_scheduler(made) if scheduler is None else dict(scheduler)
    return _assemble(replace(made, scheduler=with_settings(config, settings or {})), dtype)


def load_autoencoder(folder: Path, *, dtype: torch.dtype | None = torch.float32) -> Autoencoder:
    """The autoencoder in FOLDER/vae."""
    refuse_other("autoencoder", folder, CHECKPOINT, BUNDLE, LORA)
    return _load_network("vae", "AutoencoderKL", folder / "vae", dtype=dtype)


def load_controlnet(
    folder: str | Path, *, variant: str | None = None, dtype: torch.dtype | None = torch.float32
) -> ControlNet:
    """A ControlNet in its own folder in diffusers' layout, or in a file."""
    refuse_other("controlnet", Path(folder), CONTROLNET, BUNDLE, ADAPTER, LORA)
    if Path(folder).exists() and not Path(folder).is_dir():
        config, tensors = controlnet_source(Path(folder))
        return _build_and_fill("controlnet", "ControlNetModel", config, tensors, dtype)
    return _load_network("controlnet", "ControlNetModel", Path(folder), variant, dtype)


def load_adapter(
    folder: str | Path, *, variant: str | None = None, dtype: torch.dtype | None = torch.float32
) -> Adapter:
    """A T2I-Adapter in its own folder in diffusers' layout."""
    refuse_other("adapter", Path(folder), ADAPTER, BUNDLE, CHECKPOINT, CONTROLNET, LORA)
    if Path(folder).is_file():
        expected = "a folder in diffusers' layout, with its config.json"
        raise LdmrtError("adapter", f"cannot read {folder}", expected=expected, found="a file")
    return _load_network("adapter", "T2IAdapter", Path(folder), variant, dtype)


def _load_network(
    part: str, kind: str, folder: Path, variant: str | None = None, dtype: torch.dtype | None = torch.float32
) -> Any:
    config = read_json(part, folder / "config.json")
    return _build_and_fill(part, kind, config, part_of_folder(part, folder, variant), dtype)


def _build_and_fill(part: str, kind: str, config: dict[str, Any], tensors: Tensors, dtype: torch.dtype | None) -> Any:
    check_depth(part, config, lambda: len(tensors.named))
    network = build(part, kind, config)
    return fill(part, network, match(part, network, tensors), tensors, dtype)


def text_encoder(config: dict[str, Any], kind: str = TEXT[0], part: str = "text_encoder") -> Any:
    """A text encoder of transformers with random weights, in eval mode."""
    import transformers

    wanted = {key: value for key, value in config.items() if key not in NOTES}
    for name, value in wanted.items():
        numbers = isinstance(value, (int, float)) and not -LARGEST <= value <= LARGEST
        if numbers or (name == "layer_norm_eps" and not (isinstance(value, float) and 0 < value <= 1)):
            raise LdmrtError(part, f"config has an invalid {name}", found=repr(value))
    try:
        return getattr(transformers, kind)(transformers.CLIPTextConfig(**wanted)).eval()
    except Exception as error:  # transformers checks its configs in many ways
        found = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise LdmrtError(part, "invalid config", found=found or first_line(error)) from None


def with_scaling_factor(vae: Autoencoder, scaling_factor: float) -> Autoencoder:
    """The same weights under a config with this scaling factor."""
    vae.config = replace(vae.config, scaling_factor=scaling_factor)
    return vae


def class_of(network: nn.Module) -> str:
    """The class of diffusers or transformers that a network stands for."""
    return next((kind for kind, (ours, _) in NETWORKS.items() if type(network) is ours), type(network).__name__)


def save_network(
    folder: Path, network: nn.Module, config: dict[str, Any], dtype: torch.dtype, name: str = WEIGHTS
) -> None:
    """Weights as safetensors of `dtype`, then the config: each replaced at once."""
    write(folder.name, folder / name, network.state_dict(), dtype)
    write_json(folder / "config.json", config)


def save_text_encoder(folder: Path, network: Any, dtype: torch.dtype) -> None:
    """A text encoder under the names that every version of transformers reads: 5 dropped the prefix of some."""
    state = network.state_dict()
    if not any(key.startswith("text_model.") for key in state):
        state = {f"text_model.{key}": value for key, value in state.items()}
    write(folder.name, folder / TEXT_WEIGHTS, state, dtype)
    config = {**network.config.to_dict(), "architectures": [type(network).__name__]}
    write_json(folder / "config.json", {**config, "dtype": str(dtype).removeprefix("torch.")})


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Indented JSON, replaced at once."""
    with write_atomically(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def build(part: str, kind: str, config: dict[str, Any]) -> Any:
    """A network without weights."""
    with torch.device("meta"):
        if kind in TEXT:
            return text_encoder(config, kind, part)
        network, read = NETWORKS[kind]
        try:
            return network(read.read(config))
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # torch's own limits
            raise LdmrtError(part, "invalid config", found=first_line(error)) from None


def _assemble(source: Source, dtype: Dtype) -> Checkpoint:
    """Everything is checked that can be before the first weight is read."""
    for part in ("unet", "vae"):
        if part not in source.networks:
            raise LdmrtError(part, f"{INDEX} names none", expected="a part of every checkpoint")
    for part, (_, config) in source.networks.items():
        check_depth(part, config, lambda part=part: len(source.tensors(part).named))  # type: ignore[misc]
    networks = {part: build(part, *described) for part, described in source.networks.items()}
    encoders = {part: network for part, network in networks.items() if part.startswith("text_encoder")}
    controls = {part: network for part, network in networks.items() if part.startswith(("controlnet", "adapter"))}
    networks["unet"].config = current_size(networks["unet"].config, source)
    checkpoint = Checkpoint(
        networks["unet"], networks["vae"], encoders, source.tokenizers, source.scheduler, source.index, controls
    )
    _check(checkpoint)
    tensors = {part: source.tensors(part) for part in networks}
    matched = {part: match(part, network, tensors[part]) for part, network in networks.items()}
    for part, network in networks.items():
        kind = dtype.get(part, dtype[""]) if isinstance(dtype, Mapping) else dtype
        fill(part, network, matched.pop(part), tensors.pop(part), kind)
    return checkpoint


def _check(checkpoint: Checkpoint) -> None:
    """Do the parts fit together?"""
    unet, vae, encoders = checkpoint.unet.config, checkpoint.vae.config, checkpoint.text_encoders
    for name, found in (("in_channels", vae.in_channels), ("out_channels", vae.out_channels)):
        if found != 3:
            raise LdmrtError("vae", f"unsupported {name}", expected="3, of an RGB image", found=found)
    channels, width = vae.latent_channels, sum(encoder.config.hidden_size for encoder in encoders.values())
    if unet.in_channels not in (channels, 2 * channels + 1):  # the latter to inpaint: mask and masked picture
        problem = "in_channels of unet/config.json is not latent_channels of vae/config.json"
        raise LdmrtError("unet", problem, expected=channels, found=unet.in_channels)
    if width != unet.cross_attention_dim:
        files = " + ".join(f"{name}/config.json" for name in encoders) or "no text encoder"
        problem = f"cross_attention_dim of unet/config.json is not hidden_size of {files}"
        raise LdmrtError("unet", problem, expected=width, found=unet.cross_attention_dim)
    if unet.addition_embed_type:
        assert unet.addition_time_embed_dim is not None  # its config says so
        numbers = 5 if checkpoint.index.get("requires_aesthetics_score") else 6
        pooled = list(encoders.values())[-1].config.projection_dim
        inputs = pooled + numbers * unet.addition_time_embed_dim
        if inputs != unet.projection_class_embeddings_input_dim:
            problem = f"projection_class_embeddings_input_dim does not fit the text encoder and {numbers} sizes"
            raise LdmrtError("unet", problem, expected=inputs, found=unet.projection_class_embeddings_input_dim)
    for name, encoder in encoders.items():
        part = name.replace("text_encoder", "tokenizer")
        if part not in checkpoint.tokenizers:
            raise LdmrtError(part, f"{INDEX} names none", expected=f"one for {name}")
        tokens, text = Tokenizer(checkpoint.tokenizers[part]), encoder.config
        if tokens.size > text.vocab_size or tokens.length > text.max_position_embeddings:
            expected = f"at most {text.vocab_size} entries and {text.max_position_embeddings} tokens"
            sizes = f"{tokens.size} and {tokens.length}"
            raise LdmrtError(part, "does not fit the text encoder", expected=expected, found=sizes)
    lengths = {part: token_count(files) for part, files in checkpoint.tokenizers.items()}
    if len(set(lengths.values())) > 1:  # whose contexts lie side by side
        each = ", ".join(f"{length} of {part}" for part, length in lengths.items())
        raise LdmrtError("tokenizer_2", "another model_max_length than the first tokenizer's", found=each)
    try:
        with warnings.catch_warnings():  # who uses the scheduler is told of its unknown keys
            warnings.simplefilter("ignore", LdmrtWarning)
            plan_from_config(checkpoint.scheduler, 4)
    except (TypeError, ValueError, ArithmeticError, IndexError) as error:  # of numbers that are none
        raise LdmrtError("scheduler", "invalid config", found=first_line(error)) from None
