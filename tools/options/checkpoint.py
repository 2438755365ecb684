"""How a checkpoint is read on the command line: one set of options for everything that reads one."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import Choice

if TYPE_CHECKING:
    import torch

    from ldmrt.model.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True)
class CheckpointOptions:
    """Holds what the options of a checkpoint say."""

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
    settings: dict[str, Any]

    def load(self, dtype: "Mapping[str, torch.dtype | None]") -> "tuple[Checkpoint, dict[str, Any]]":
        """The checkpoint with everything that goes with it, and what the manifest says of the files that were merged
        into its weights. `dtype` is one for each network's name, and "" for all others; None is as stored.
        """
        from ldmrt.model.checkpoint.file_notes import few_steps_file, for_few_steps
        from ldmrt.model.checkpoint.load import load, load_adapter, load_controlnet
        from ldmrt.model.lora.merge import merge, read_lora
        from ldmrt.model.textual_inversion.merge import add_embeddings, read_embedding
        from ldmrt.runtime.pipeline.controls import ADAPTER, CONTROLNET
        from ldmrt.runtime.samplers.settings import read_scheduler

        assert self.checkpoint is not None
        parts = self.text_encoders | ({"vae": self.vae} if self.vae else {})
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
        )
        few = next(filter(None, (few_steps_file(path) for path, _ in self.loras)), None)
        if few is not None and "timestep_spacing" not in self.settings:
            loaded = replace(loaded, scheduler=for_few_steps(loaded.scheduler, few))
        kinds: tuple[tuple[str, Any, dict[str, Path]], ...] = (
            (CONTROLNET, load_controlnet, self.controlnets),
            (ADAPTER, load_adapter, self.adapters),
        )
        controls = {
            kind + name: read(path, dtype=dtype.get(kind + name, dtype[""]))
            for kind, read, folders in kinds
            for name, path in folders.items()
        }
        loaded = replace(loaded, controls={**loaded.controls, **controls})
        # What will be narrowed later stays float32 where files are merged: it is rounded once
        wide = [name for name in loaded.networks if dtype.get(name, dtype[""]) is None]
        loras = [(read_lora(path), weight) for path, weight in self.loras]
        merged = merge(loaded.networks, loras, unrounded=wide) if loras else {}
        embeddings = [read_embedding(path, word) for path, word in self.embeddings]
        embeddings += [embedding for lora, _ in loras for embedding in lora.embeddings]
        if embeddings:
            merged["embeddings"] = add_embeddings(loaded.text_encoders, loaded.tokenizers, embeddings, wide)
        if parts:
            merged["parts"] = {part: path.name for part, path in parts.items()}
        if scheduler is not None or self.settings:
            merged["scheduler"] = {"file": self.scheduler_config and self.scheduler_config.name, "set": self.settings}
        return loaded, merged


class Weighed(click.ParamType):
    """Reads FILE or FILE:WEIGHT."""

    name = "file[:weight]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Path, float]:
        file, colon, weight = str(value).rpartition(":")
        try:
            return (Path(file), float(weight)) if colon else (Path(weight), 1.0)
        except ValueError:  # the colon belongs to the path
            return Path(value), 1.0


class Word(click.ParamType):
    """Reads FILE or FILE:WORD."""

    name = "file[:word]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Path, str | None]:
        text = str(value)
        colons = [place for place, letter in enumerate(text) if letter == ":" and text[:place] and text[place + 1 :]]
        there = [place for place in colons if Path(text[:place]).exists()]
        if Path(text).exists() or not there:
            return Path(text), None
        return Path(text[: there[-1]]), text[there[-1] + 1 :]


def named(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """Read NAME=FOLDER, several times."""
    if wrong := [value for value in values if not all(value.partition("="))]:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=FOLDER", ctx, param)
    return {value.partition("=")[0]: Path(value.partition("=")[2]) for value in values}


def part_files(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """Read PATH or text_encoder_2=PATH, several times."""
    pairs = [value.partition("=") if value.startswith("text_encoder") else ("", "", value) for value in values]
    return {name if equals else "text_encoder": Path(path if equals else name + path) for name, equals, path in pairs}


def settings_of(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Read KEY=VALUE, several times."""
    from ldmrt.runtime.samplers.settings import parse_setting

    return dict(map(parse_setting, values))


FILE = click.Path(path_type=Path)
SCHEDULER = (
    click.option("--scheduler-config", type=FILE, help="A scheduler_config.json in the place of the model's own."),
    click.option("--set", "settings", multiple=True, callback=settings_of, metavar="KEY=VALUE",
                 help="A key of the scheduler's config, such as timestep_spacing=trailing."),
)  # fmt: skip
OPTIONS = (
    click.option("--variant", help="Of the weights, such as fp16; the plain ones by default."),
    click.option("--tokenizer", type=FILE, help="A folder with CLIP's vocabulary, which a single file lacks."),
    click.option("--prediction", type=Choice(["epsilon", "v_prediction"]),
                 help="What the model predicts, where the checkpoint does not say it."),
    click.option("--controlnet", "controlnets", multiple=True, callback=named, metavar="NAME=FOLDER",
                 help="A ControlNet that goes with it; the U-Net then takes its residuals."),
    click.option("--adapter", "adapters", multiple=True, callback=named, metavar="NAME=FOLDER",
                 help="A T2I-Adapter that goes with it; the U-Net then takes its features."),
    click.option("--lora", "loras", type=Weighed(), multiple=True, help="A LoRA to merge into the weights."),
    click.option("--embedding", "embeddings", type=Word(), multiple=True,
                 help="A textual inversion to add, under WORD or its own name."),
    click.option("--vae", type=FILE, help="An autoencoder in the place of the checkpoint's: a folder or a file."),
    click.option("--text-encoder", "text_encoders", multiple=True, callback=part_files, metavar="[NAME=]PATH",
                 help="A text encoder in the place of the checkpoint's; NAME may be text_encoder_2."),
    *SCHEDULER,
)  # fmt: skip


def checkpoint_options(command: Any) -> Any:
    """Give a command with the parameter "checkpoint" the options of `CheckpointOptions`, taken as `source`."""

    @functools.wraps(command)
    def gathered(**given: Any) -> Any:
        source = CheckpointOptions(**{one.name: given.pop(one.name) for one in fields(CheckpointOptions)})
        return command(source=source, **given)

    for option in reversed(OPTIONS):
        gathered = option(gathered)
    return gathered
