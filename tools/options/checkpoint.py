"""One set of options for all commands that read a checkpoint."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from .common import Choice
from .types import Layers

if TYPE_CHECKING:
    import torch

    from ldmrt.model.checkpoint.checkpoint import Checkpoint
    from ldmrt.runtime.files.reading import JsonObject

R = TypeVar("R")


@dataclass(frozen=True)
class CheckpointOptions:
    """The values of the options: a checkpoint and all that is merged into it or goes with it."""

    checkpoint: str | None
    variant: str | None
    tokenizer: Path | None
    prediction: str | None
    controlnets: dict[str, Path]
    adapters: dict[str, Path]
    loras: tuple[tuple[Path, float], ...]
    embeddings: tuple[tuple[Path, str | None], ...]
    vae: Path | None
    text_encoders: dict[str, Path]
    scheduler_config: Path | None
    settings: "JsonObject"
    without_t5: bool = False
    transformer: Path | None = None
    max_sequence_length: int | None = None
    skip_layers: tuple[int, ...] | None = None
    preview_decoder: Path | None = None
    long_prompts: bool = False
    ip_adapter: Path | None = None
    image_encoder: Path | None = None
    safety_checker: Path | None = None

    def load(self, dtype: "Mapping[str, torch.dtype | None]") -> "tuple[Checkpoint, JsonObject]":
        """Load the checkpoint, merge LoRAs and textual inversions into it, and add its controls.

        Args:
            dtype: The dtype by network name, "" for all others; None keeps the dtype of the files.

        Returns:
            The checkpoint, and the entries of the manifest that name the files that were merged.
        """
        from ldmrt.model.checkpoint.file_notes import few_steps_file, for_few_steps
        from ldmrt.model.checkpoint.load import load, load_adapter, load_controlnet, with_preview_decoder
        from ldmrt.model.lora.merge import merge, read_lora
        from ldmrt.model.textual_inversion.merge import add_embeddings, read_embedding
        from ldmrt.model.vision.ip_adapter import with_ip_adapter
        from ldmrt.model.vision.safety_checker import with_safety_checker
        from ldmrt.runtime.bundle.graphs import DECODER_PREVIEW, SAFETY_CHECKER
        from ldmrt.runtime.pipeline.denoising.controls import ADAPTER, CONTROLNET
        from ldmrt.runtime.samplers.settings import read_scheduler

        assert self.checkpoint is not None
        own = {"vae": self.vae, "transformer": self.transformer}
        parts = self.text_encoders | {part: path for part, path in own.items() if path}
        scheduler = None if self.scheduler_config is None else read_scheduler(self.scheduler_config)
        loaded = load(
            self.checkpoint,
            variant=self.variant,
            dtype=dtype,
            tokenizer=self.tokenizer,
            prediction_type=self.prediction,
            parts=parts,
            scheduler=scheduler,
            settings=self.settings,
            without_t5=self.without_t5,
            max_sequence_length=self.max_sequence_length,
            skip_layers=self.skip_layers or (),
        )
        loras = [(read_lora(path), weight) for path, weight in self.loras]
        embeddings = [read_embedding(path, word) for path, word in self.embeddings]
        embeddings += [embedding for lora, _ in loras for embedding in lora.embeddings]
        if self.controlnets or self.adapters:
            loaded.unet  # noqa: B018 which refuses a transformer
        few = next(filter(None, (few_steps_file(path) for path, _ in self.loras)), None)
        if few is not None and "timestep_spacing" not in self.settings and "unet" in loaded.networks:
            loaded = replace(loaded, scheduler=for_few_steps(loaded.scheduler, few))
        controls = dict(loaded.controls)
        for name, path in self.controlnets.items():
            controls[CONTROLNET + name] = load_controlnet(path, dtype=dtype.get(CONTROLNET + name, dtype[""]))
        for name, path in self.adapters.items():
            controls[ADAPTER + name] = load_adapter(path, dtype=dtype.get(ADAPTER + name, dtype[""]))
        loaded = replace(loaded, controls=controls)
        if self.long_prompts:
            loaded.unet  # noqa: B018 likewise
            loaded = replace(loaded, long_prompts=True)
        if self.preview_decoder is not None:
            kept = dtype.get(DECODER_PREVIEW, dtype[""])
            loaded = with_preview_decoder(loaded, self.preview_decoder, dtype=kept)
        if self.ip_adapter is not None:
            loaded = with_ip_adapter(loaded, self.ip_adapter, image_encoder=self.image_encoder, dtype=dtype)
        if self.safety_checker is not None:
            kept = dtype.get(SAFETY_CHECKER, dtype[""])
            loaded = with_safety_checker(loaded, self.safety_checker, dtype=kept)
        # Weights that are cast to half precision later stay float32 while files are merged: they are rounded once.
        unrounded = [name for name in loaded.networks if dtype.get(name, dtype[""]) is None]
        merged = merge(loaded.networks, loras, unrounded=unrounded) if loras else {}
        if embeddings:
            merged["embeddings"] = add_embeddings(loaded.text_encoders, loaded.tokenizers, embeddings, unrounded)
        if parts:
            merged["parts"] = {part: path.name for part, path in parts.items()}
        if scheduler is not None or self.settings:
            merged["scheduler"] = {"file": self.scheduler_config and self.scheduler_config.name, "set": self.settings}
        return loaded, merged


class WeighedFile(NamedTuple):
    """A file, and the weight that it is merged with."""

    path: Path
    weight: float

    def __str__(self) -> str:
        """Write both as the option has them."""
        return f"{self.path}:{self.weight}"


class WordFile(NamedTuple):
    """A file, and the word that it gets; None for its own."""

    path: Path
    word: str | None

    def __str__(self) -> str:
        """Write both as the option has them."""
        return str(self.path) if self.word is None else f"{self.path}:{self.word}"


class Weighed(click.ParamType):
    """An option of the form FILE or FILE:WEIGHT."""

    name = "file[:weight]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> WeighedFile:
        """Split into the file and its weight, 1 by default."""
        file, colon, weight = str(value).rpartition(":")
        try:
            return WeighedFile(Path(file), float(weight)) if colon else WeighedFile(Path(weight), 1.0)
        except ValueError:  # the colon belongs to the path
            return WeighedFile(Path(str(value)), 1.0)


class Word(click.ParamType):
    """An option of the form FILE or FILE:WORD."""

    name = "file[:word]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> WordFile:
        """Split into the file and the word, at the last colon that follows an existing file's name."""
        text = str(value)
        colons = [place for place, letter in enumerate(text) if letter == ":" and text[:place] and text[place + 1 :]]
        separators = [place for place in colons if Path(text[:place]).exists()]
        if Path(text).exists() or not separators:
            return WordFile(Path(text), None)
        return WordFile(Path(text[: separators[-1]]), text[separators[-1] + 1 :])


def named(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """Parse every NAME=FOLDER of an option that may be repeated."""
    if wrong := [value for value in values if not all(value.partition("="))]:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=FOLDER", ctx, param)
    return {value.partition("=")[0]: Path(value.partition("=")[2]) for value in values}


def part_files(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """Parse every PATH or text_encoder_2=PATH of an option that may be repeated."""
    pairs = [value.partition("=") if value.startswith("text_encoder") else ("", "", value) for value in values]
    return {name if equals else "text_encoder": Path(path if equals else name + path) for name, equals, path in pairs}


def settings_of(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> "JsonObject":
    """Parse every KEY=VALUE of an option that may be repeated."""
    from ldmrt.runtime.samplers.settings import parse_setting

    return dict(map(parse_setting, values))


def only_one(ctx: click.Context, param: click.Parameter, values: tuple[Path, ...]) -> Path | None:
    """Return the one value of an option that must not be repeated, or None."""
    if len(values) > 1:
        raise click.BadParameter("several IP-Adapters at once are not supported", ctx, param)
    return values[0] if values else None


FILE = click.Path(path_type=Path)
SCHEDULER = (
    click.option("--scheduler-config", type=FILE, help="A scheduler_config.json in place of the model's own."),
    click.option("--set", "settings", multiple=True, callback=settings_of, metavar="KEY=VALUE",
                 help="Change a key of the scheduler's config, such as timestep_spacing=trailing."),
)  # fmt: skip
BASE = (
    click.option("--variant", help="Variant of the weight files, such as fp16; none by default."),
    click.option("--tokenizer", type=FILE, help="Folder with the vocabularies, which a single file lacks."),
    click.option("--prediction", type=Choice(["epsilon", "v_prediction"]),
                 help="What the U-Net predicts, where the checkpoint does not say."),
    click.option("--lora", "loras", type=Weighed(), multiple=True, help="Merge a LoRA into the weights."),
    click.option("--embedding", "embeddings", type=Word(), multiple=True,
                 help="Add a textual inversion, under WORD or its own name."),
    click.option("--vae", type=FILE, help="Autoencoder in place of the checkpoint's: a folder or a file."),
    click.option("--text-encoder", "text_encoders", multiple=True, callback=part_files, metavar="[NAME=]PATH",
                 help="Text encoder in place of the checkpoint's; NAME may be text_encoder_2 or 3."),
    SCHEDULER[0],
)  # fmt: skip
CONTROLS = (
    click.option("--controlnet", "controlnets", multiple=True, callback=named, metavar="NAME=FOLDER",
                 help="Add a ControlNet; the U-Net then takes its residuals."),
    click.option("--adapter", "adapters", multiple=True, callback=named, metavar="NAME=FOLDER",
                 help="Add a T2I-Adapter; the U-Net then takes its features."),
)  # fmt: skip
WITHOUT_T5 = click.option("--without-t5", is_flag=True, help="Leave out T5, Stable Diffusion 3's largest text encoder.")
TOKENS = click.option("--max-sequence-length", type=click.IntRange(2, 512),
                      help="Tokens of a prompt that T5, Gemma or Qwen3 reads; diffusers' by default.")  # fmt: skip
SKIPPED = click.option("--skip-layers", type=Layers(),
                       help="Stable Diffusion 3.5: layers that a row of guidance may skip, as 7,8,9.")  # fmt: skip
TRANSFORMER = click.option("--transformer", type=FILE,
                           help="Transformer in place of the checkpoint's: a folder or a file.")  # fmt: skip
PREVIEW = click.option("--preview-decoder", type=FILE,
                       help="Tiny autoencoder (AutoencoderTiny) that decodes previews: its folder.")  # fmt: skip
IP_ADAPTER = (
    click.option("--ip-adapter", type=FILE, multiple=True, callback=only_one, metavar="PATH",
                 help="Add an IP-Adapter, by which the U-Net reads an image too: its file, or a folder with it."),
    click.option("--image-encoder", type=FILE,
                 help="The IP-Adapter's image encoder: its folder; image_encoder beside the file by default."),
)  # fmt: skip
SAFETY = click.option("--safety-checker", type=FILE,
                      help="Carry the safety checker of this folder, safety_checker or a checkpoint's.")  # fmt: skip
LONG = click.option("--long-prompts", is_flag=True,
                    help="Read prompts of any length, and weights below 1 of --prompt-syntax compel.")  # fmt: skip
OPTIONS = (*BASE[:3], *CONTROLS, *BASE[3:6], TRANSFORMER, *BASE[6:], SCHEDULER[1], WITHOUT_T5, TOKENS, SKIPPED, LONG,
           PREVIEW, *IP_ADAPTER, SAFETY)  # fmt: skip
NAMES = ("variant", "tokenizer", "prediction", "loras", "embeddings", "vae", "text_encoders", "scheduler_config")


def base_of(checkpoint: str, values: dict[str, Any]) -> CheckpointOptions:
    """Take the values of the options in `BASE` out of a command's."""
    none: dict[str, Any] = {"controlnets": {}, "adapters": {}, "settings": {}}
    return CheckpointOptions(checkpoint, **none, **{name: values.pop(name) for name in NAMES})


def checkpoint_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command with the parameter `checkpoint` the options of `CheckpointOptions`, passed on as `source`."""

    @functools.wraps(command)
    def with_source(**parameters: Any) -> R:
        source = CheckpointOptions(**{field.name: parameters.pop(field.name) for field in fields(CheckpointOptions)})
        return command(source=source, **parameters)

    decorated: Callable[..., R] = with_source
    for option in reversed(OPTIONS):
        decorated = option(decorated)
    return decorated
