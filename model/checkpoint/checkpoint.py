"""Hold a latent diffusion model, build its networks from configs, and save it in diffusers' layout."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard, TypeVar

import torch
from torch import nn

from ldmrt.model.config import LARGEST, RawConfig, to_config
from ldmrt.model.families.ip_adapter import with_image_prompt
from ldmrt.model.families.table import stage_of
from ldmrt.model.library import gemma2, qwen3, t5
from ldmrt.model.library.clip_vision import SafetyChecker
from ldmrt.model.library.deep_autoencoder import DeepAutoencoder
from ldmrt.model.library.flux import FluxConfig, flux
from ldmrt.model.library.pixart import PixArtConfig, pixart
from ldmrt.model.library.sana import SanaConfig, sana
from ldmrt.model.library.stable_diffusion_3 import SD3Config, stable_diffusion_3
from ldmrt.model.library.z_image import ZImageConfig, z_image
from ldmrt.model.networks.autoencoder import Autoencoder
from ldmrt.model.networks.controls.controlnet import ControlNet
from ldmrt.model.networks.controls.ip_adapter import ImagePrompt
from ldmrt.model.networks.controls.t2i_adapter import Adapter
from ldmrt.model.networks.ldm_bert import LDMBert
from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.model.networks.tiny_autoencoder import TinyAutoencoder
from ldmrt.model.networks.unet import UNet
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder
from ldmrt.model.weights.weight_files import STEMS
from ldmrt.model.weights.weights import write
from ldmrt.runtime.bundle.stage_of_configs import FLUX, PIXART, SANA, SD3, Z_IMAGE
from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.tokenizer.vocabulary import tokenizer_class

from .folder import INDEX, ONE_STATE, T5, TEXT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ldmrt.model.library.flux import Flux
    from ldmrt.model.library.pixart import PixArt
    from ldmrt.model.library.sana import Sana
    from ldmrt.model.library.stable_diffusion_3 import StableDiffusion3
    from ldmrt.model.library.z_image import ZImage

Control = ControlNet | Adapter
Codec = Autoencoder | VQAutoencoder | TinyAutoencoder | DeepAutoencoder
Denoiser: TypeAlias = "UNet | PlainUNet | StableDiffusion3 | Flux | PixArt | Sana | ZImage"
V = TypeVar("V", bound=Codec)
TextEncoder: TypeAlias = "PreTrainedModel | LDMBert"
WEIGHTS, TEXT_WEIGHTS = f"{STEMS[0]}.safetensors", f"{STEMS[1]}.safetensors"
PIPELINE = {
    "_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None],
    "requires_safety_checker": False, "safety_checker": [None, None],
}  # fmt: skip
# Where a pipeline finds a class that is not diffusers' own; the last is a module of its pipeline's.
LIBRARIES = {**dict.fromkeys((*TEXT, *ONE_STATE), "transformers"), "LDMBertModel": "latent_diffusion"}
# Keys of a text encoder's config about the program that ran it; the model is the same.
NOTES = {"dtype", "torch_dtype", "_name_or_path", "_attn_implementation", "attn_implementation", "return_dict"}
NOTES |= {"output_attentions", "output_hidden_states"}
EPSILONS = ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps")  # CLIP's, T5's and Gemma's names
# The text encoders that transformers defines, by their configs' classes, and what is done to one that is built.
ENCODERS: dict[str, tuple[str, Callable[[nn.Module], object]]] = {
    **dict.fromkeys(TEXT, ("CLIPTextConfig", lambda encoder: encoder)),
    T5: ("T5Config", t5.leave_precision),
    gemma2.GEMMA: ("Gemma2Config", gemma2.prepared),
    qwen3.QWEN: ("Qwen3Config", qwen3.prepared),
}
# The networks of this package by the names of diffusers' classes.
NETWORKS: dict[str, type[UNet | PlainUNet | Codec | Control | LDMBert]] = {
    "UNet2DConditionModel": UNet,
    "UNet2DModel": PlainUNet,
    "AutoencoderKL": Autoencoder,
    "VQModel": VQAutoencoder,
    "AutoencoderTiny": TinyAutoencoder,
    "AutoencoderDC": DeepAutoencoder,
    "ControlNetModel": ControlNet,
    "T2IAdapter": Adapter,
    "LDMBertModel": LDMBert,
}
# The transformers that diffusers defines: how one is built, and how its config is read.
LibraryConfig = SD3Config | FluxConfig | PixArtConfig | SanaConfig | ZImageConfig
LIBRARY: dict[str, tuple[Callable[[RawConfig], nn.Module], Callable[[RawConfig], LibraryConfig]]] = {
    SD3: (stable_diffusion_3, SD3Config.read),
    FLUX: (flux, FluxConfig.read),
    PIXART: (pixart, PixArtConfig.read),
    SANA: (sana, SanaConfig.read),
    Z_IMAGE: (z_image, ZImageConfig.read),
}


@dataclass(frozen=True)
class Checkpoint:
    """Holds the networks, the tokenizers' files and the scheduler's config, under the names of diffusers' folders.

    SDXL has two text encoders, its refiner only the second, Stable Diffusion 3 up to three; models without a prompt
    have none, and models that work in pixels have no autoencoder. `index` is model_index.json without its parts.
    """

    denoiser: Denoiser
    vae: Codec | None
    text_encoders: dict[str, TextEncoder]  # "text_encoder", "text_encoder_2": classes of transformers, or our own
    tokenizers: dict[str, dict[str, bytes]] = field(repr=False)  # "tokenizer", "tokenizer_2": file name -> content
    scheduler: JsonObject
    index: JsonObject = field(default_factory=lambda: dict(PIPELINE))
    controls: dict[str, Control] = field(default_factory=dict)  # "controlnet_canny", "adapter_depth" ...
    spare: Codec | None = None  # a copy in float32, where `vae` is in half precision and may overflow
    image_prompt: ImagePrompt | None = None  # of an IP-Adapter, whose layers the U-Net has then
    safety_checker: SafetyChecker | None = None  # which looks at the images that are drawn
    preview: TinyAutoencoder | None = None  # whose decoder shows what rows predict; it is no part of the pipeline
    noisers: dict[str, JsonObject] = field(default_factory=dict)  # configs of "low_res_scheduler"
    folders: dict[str, str] = field(default_factory=dict)  # of networks that have another name in their pipeline
    t5_tokens: int | None = None  # of a prompt, as T5 reads it; as many as in diffusers' pipeline by default
    skip_layers: tuple[int, ...] = ()  # of a transformer, that a row of guidance may skip
    long_prompts: bool = False  # a U-Net that reads any number of tokens, and text encoders that take a mask

    @property
    def stage(self) -> Stage:
        """Describe how images are made with these networks."""
        stage = stage_of(config_of(self.denoiser), None if self.vae is None else config_of(self.vae), self.index)
        stage = stage if self.t5_tokens is None else stage.of_tokens(self.t5_tokens)
        if self.preview is not None:
            stage = stage.previewed(self.preview.config.scaling_factor, self.preview.config.shift_factor or 0.0)
        if (prompt := self.image_prompt) is not None:
            stage = with_image_prompt(stage, prompt.blocks, encoded=prompt.projection.layered)
        return stage.skipping(self.skip_layers) if self.skip_layers else stage

    @property
    def unet(self) -> UNet | PlainUNet:
        """The network that denoises, where it is a U-Net.

        Raises:
            LdmrtError: It is a transformer.
        """
        if not isinstance(self.denoiser, (UNet, PlainUNet)):
            problem, expected = "this needs a model with a U-Net", "Stable Diffusion 1, 2 or XL, or one before it"
            raise LdmrtError("checkpoint", problem, expected=expected, found=class_of(self.denoiser))
        return self.denoiser

    @property
    def schedulers(self) -> dict[str, JsonObject]:
        """Every scheduler's config by its folder's name."""
        return {"scheduler": self.scheduler, **self.noisers}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Every network by its name here."""
        return {**self.own_networks, **self.text_encoders}

    @property
    def own_networks(self) -> "dict[str, Denoiser | Codec | Control]":
        """The networks that are no text encoders, by their names here."""
        return {self.stage.network: self.denoiser, **({} if self.vae is None else {"vae": self.vae}), **self.controls}

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a folder in diffusers' layout; model_index.json comes last.

        Args:
            folder: The folder, which need not exist. Files in it are replaced, each at once.
            dtype: The dtype of all weights.

        Raises:
            LdmrtError: A weight is infinite or NaN in this dtype.
        """
        for name, encoder in self.text_encoders.items():
            save_text_encoder(folder / self.folders.get(name, name), encoder, dtype)
        for name, network in self.own_networks.items():
            save_network(folder / self.folders.get(name, name), network, config_of(network), dtype)
        for name, files in self.tokenizers.items():
            for file_name, content in files.items():
                with write_atomically(folder / name / file_name) as file:
                    file.write(content)
        for name, scheduler in self.schedulers.items():
            write_json(folder / name / "scheduler_config.json", scheduler)
        write_json(folder / INDEX, self.model_index())

    def model_index(self) -> JsonObject:
        """Return the content of model_index.json, which tells diffusers and optimum the class of each part."""
        kinds = {self.folders.get(name, name): class_of(network) for name, network in self.networks.items()}
        parts = {name: [LIBRARIES.get(kind, "diffusers"), kind] for name, kind in kinds.items()}
        parts |= {name: ["transformers", tokenizer_class(files)] for name, files in self.tokenizers.items()}
        parts |= {name: ["diffusers", scheduler["_class_name"]] for name, scheduler in self.schedulers.items()}
        return dict(sorted({**self.index, **parts}.items()))


def text_encoder(config: JsonObject, kind: str = TEXT[0], part: str = "text_encoder") -> "PreTrainedModel":
    """Build a text encoder of transformers with random weights, in eval mode: CLIP, T5, Gemma or Qwen3.

    Args:
        config: The content of its config.json.
        kind: The class, one of `ENCODERS`.
        part: The part of the checkpoint that errors name.

    Raises:
        LdmrtError: transformers refuses the config, or a number in it is out of range.
    """
    name, prepare = ENCODERS[kind]
    return from_transformers(part, kind, name, config, prepare)


def from_transformers(
    part: str,
    kind: str,
    name: str,
    config: JsonObject,
    prepare: Callable[[nn.Module], object] = lambda network: network,
) -> "PreTrainedModel":
    """Build a network of transformers with random weights, in eval mode.

    Args:
        part: The part of the checkpoint that errors name.
        kind: Its class.
        name: The class of its config.
        config: The content of its config.json.
        prepare: What is done to it then.

    Raises:
        LdmrtError: transformers refuses the config, or a number in it is out of range.
    """
    import transformers

    settings = {key: value for key, value in config.items() if key not in NOTES}
    for key, value in settings.items():
        numbers = isinstance(value, (int, float)) and not -LARGEST <= value <= LARGEST
        if numbers or (key in EPSILONS and not (isinstance(value, float) and 0 < value <= 1)):
            raise LdmrtError(part, f"config has an invalid {key}", found=repr(value))
    try:
        network: PreTrainedModel = getattr(transformers, kind)(getattr(transformers, name)(**settings)).eval()
        prepare(network)
    except LdmrtError:
        raise
    except Exception as error:  # transformers checks its configs in many ways
        found = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise LdmrtError(part, "invalid config", found=found or first_line(error)) from None
    return network


def with_scaling_factor(vae: V, scaling_factor: float) -> V:
    """Change the scaling factor in an autoencoder's config; returns the same object."""
    vae.config = replace(vae.config, scaling_factor=scaling_factor)
    return vae


def class_of(network: nn.Module) -> str:
    """Return the name of the class in diffusers or transformers that a network stands for."""
    return next((kind for kind, ours in NETWORKS.items() if type(network) is ours), type(network).__name__)


def config_of(network: "Denoiser | Codec | Control | LDMBert") -> JsonObject:
    """Return the content of config.json of a network that is no text encoder of transformers."""
    config = network.config
    if isinstance(config, dict):  # of a class of diffusers
        config = LIBRARY[class_of(network)][1](config)
    return to_config(class_of(network), config)


def is_text_encoder(network: nn.Module) -> TypeGuard[TextEncoder]:
    """Tell a text encoder, of transformers or of this package, from other networks."""
    return isinstance(network, LDMBert) or class_of(network) in ENCODERS


def save_network(folder: Path, network: nn.Module, config: RawConfig, dtype: torch.dtype, name: str = WEIGHTS) -> None:
    """Write a network's weights as safetensors of `dtype`, then its config; each file is replaced at once."""
    write(folder.name, folder / name, network.state_dict(), dtype)
    write_json(folder / "config.json", config)


def save_text_encoder(folder: Path, network: TextEncoder, dtype: torch.dtype) -> None:
    """Write a text encoder with the names that every version of transformers reads: 5 dropped the prefix of some."""
    state = network.state_dict()
    if class_of(network) in TEXT and not any(key.startswith("text_model.") for key in state):
        state = {f"text_model.{key}": value for key, value in state.items()}
    if class_of(network) == T5:
        state = t5.saved(state)
    write(folder.name, folder / TEXT_WEIGHTS, state, dtype)
    config = {**network.config.to_dict(), "architectures": [class_of(network)]}
    write_json(folder / "config.json", {**config, "dtype": str(dtype).removeprefix("torch.")})


def write_json(path: Path, value: RawConfig) -> None:
    """Write indented JSON to a file, replaced at once."""
    with write_atomically(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


@contextmanager
def on_meta(part: str) -> Iterator[None]:
    """Build networks on the meta device; sizes that torch refuses are an `LdmrtError`."""
    try:
        with torch.device("meta"):
            yield
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # torch's own limits
        raise LdmrtError(part, "invalid config", found=first_line(error)) from None


def build(part: str, kind: str, config: JsonObject) -> nn.Module:
    """Build a network without weights, on the meta device.

    Args:
        part: The part of the checkpoint that errors name.
        kind: The class in diffusers or transformers.
        config: The content of its config.json.

    Raises:
        LdmrtError: The config is invalid or unsupported.
    """
    with on_meta(part):
        if kind in LIBRARY:
            return LIBRARY[kind][0](config)
        return text_encoder(config, kind, part) if kind in ENCODERS else NETWORKS[kind].from_config(config)
