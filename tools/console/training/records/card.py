"""Write the model card of a training, OUT/README.md: the model, its curve, and the command that makes it again."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import ldmrt
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.hub import is_hub_name
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.tools.console.drawing.plot import Points, plot
from ldmrt.tools.console.progress import console
from ldmrt.tools.console.training.recipe import RECIPE

from .data_facts import facts_of
from .log import LOG
from .markdown import block, code, command, plain, scalar, table
from .stamp import may_replace, stamped

if TYPE_CHECKING:
    from ldmrt.model.training.data.captioned import Captioned
    from ldmrt.model.training.data.regularisation import Regularisation
    from ldmrt.model.training.loop.run import Run
    from ldmrt.tools.console.training.options import Options

CARD = "README.md"
PLOT = Path("training") / "loss.png"
LARGEST = 1 << 16  # characters of another card that are read
POINTS = 200  # of the curve; more are averaged
ROWS = 8  # of the table of validation losses, evenly spaced
STARTS = ("from", "decoder_of")  # options that name what a training starts from
TEXTS = ("prompt", "regularisation_prompt", "prefix", "caption_column", "style", "group")  # options that hold no path


@dataclass(frozen=True)
class Kind:
    """States what a training makes: in words, as a task of the hub, and whether the folder loads in diffusers."""

    title: str
    pipeline: str | None = None
    in_diffusers: bool = True
    relation: str = "finetune"  # to the checkpoint that it starts from


KINDS = {
    "autoencoder": Kind("An autoencoder, which turns images into latents and back"),
    "ldm": Kind("A text-to-image diffusion model in latents", "text-to-image"),
    "finetune": Kind("A text-to-image diffusion model", "text-to-image"),
    "lora": Kind("A LoRA", "text-to-image", relation="adapter"),
    "inpaint": Kind("A diffusion model that fills the masked part of an image", "image-to-image"),
    "upscale": Kind("A diffusion model that enlarges images in latents", "image-to-image"),
    "classes": Kind("A class-conditional diffusion model", in_diffusers=False),
    "unconditional": Kind("An unconditional diffusion model in pixels", "unconditional-image-generation"),
    "upscaler": Kind("A diffusion model in pixels that doubles the size of images", "image-to-image", False),
}


class Card:
    """Writes the card of a run as it is now, with the curve of its loss beside its state."""

    def __init__(
        self,
        run: "Run[Any]",
        options: "Options",
        data: "Captioned | None",
        held: "Captioned | None",
        regularisation: "Regularisation | None" = None,
    ) -> None:
        """Read what the metadata states of the images; nothing is written yet."""
        self.run, self.options, self.facts = run, options, facts_of(data, held, regularisation)
        self.told = False  # that another card is there

    def write(self) -> None:
        """Write the curve and the card, each at once; a card that a person wrote or edited stays, which is told once.

        Raises:
            LdmrtError: They cannot be written.
        """
        try:
            self._write()
        except OSError as error:
            hint, why = "--resume, as soon as it can be written", (error.strerror or str(error)).lower()
            raise LdmrtError("train", f"{error.filename} cannot be written", found=why, hint=hint) from None

    def _write(self) -> None:
        out = self.options.out
        lines = list[JsonObject]()
        with contextlib.suppress(LdmrtError):  # missing, or damaged: a card without curves
            from ldmrt.model.training.log import read_log

            lines = read_log(out / LOG)
        if curves := _curves(lines, self.options.log_every):
            with write_atomically(out / PLOT) as file:
                file.write(plot(curves, "step"))
        if may_replace(out / CARD):
            with write_atomically(out / CARD) as file:
                file.write(stamped(self.text(lines if curves else [])))
        elif not self.told:
            self.told = True
            text = f"{out / CARD} is not as ldmrt train writes it, and stays; without it the next checkpoint writes one"
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    def text(self, lines: Sequence[JsonObject]) -> str:
        """Return the card, with the losses of a log."""
        options, step = self.options, self.run.step
        preview = PurePosixPath("training", f"{options.task}-{step:06d}.png")
        title = _name(options.out) or "model"
        return "\n\n".join([
            "\n".join(["---", *self._metadata(), "---"]),
            f"# {plain(title)}",
            self._sentence(),
            *([f"![Preview after step {step}]({preview})"] if (options.out / preview).is_file() else []),
            "## Training",
            table(("", ""), self._facts()),
            *([f"![Loss by step]({PLOT.as_posix()})"] if lines else []),
            *_validation([line for line in lines if "validation" in line]),
            "## Recipe",
            *self._recipe(title),
            *self._changes(),
        ]) + "\n"  # fmt: skip

    @property
    def _source(self) -> str | None:
        """The checkpoint that the training starts from, or the autoencoder, as the command names it."""
        differing = self.options.differing
        return next((differing[key][0] for key in STARTS if key in differing), None)

    @property
    def _base(self) -> str | None:
        """Its name on the hub, or that of its file or folder."""
        if self._source is None:
            return None
        return _name(Path(self._source)) if Path(self._source).exists() else shown(self._source)

    def _metadata(self) -> Iterator[str]:
        """Yield the lines of the front matter, which is YAML."""
        options, kind = self.options, KINDS[self.options.task]
        if kind.in_diffusers and "class_column" not in options.differing:  # a pipeline of our own
            yield "library_name: diffusers"
        if self._base and self._source:
            if licence := _licence(Path(self._source) / CARD):
                yield f"license: {licence}"
            yield f"base_model: {scalar(self._base)}"
            yield f"base_model_relation: {kind.relation}"
        if kind.pipeline:
            yield f"pipeline_tag: {kind.pipeline}"
        data = str(options.folder).removeprefix("hf:").split(":")[0]
        if data != str(options.folder) and is_hub_name(data) and not Path(data).exists():
            yield from ("datasets:", f"- {scalar(data)}")
        yield from ("tags:", "- ldmrt", f"- {options.task}")

    def _sentence(self) -> str:
        """Say in one line what was trained."""
        kind, base = KINDS[self.options.task], self._base
        start = "from scratch" if base is None else f"from {code(base)}"
        if "decoder_of" in self.options.differing:
            start = f"(the decoder alone) {start}"
        return f"{kind.title}, trained {start} with {code(f'ldmrt train {self.options.task}')}."

    def _facts(self) -> Iterator[tuple[str, str]]:
        import torch

        settings = self.run.settings
        yield "data", code(shown(str(self.options.folder)))
        yield from self.facts
        yield "steps", f"{self.run.step} of {settings.steps}, in batches of {settings.batch}"
        yield "seed", str(settings.seed)
        yield "versions", f"ldmrt {ldmrt.__version__}, torch {torch.__version__}"

    def _recipe(self, title: str) -> Iterator[str]:
        """Yield the commands that make the run again, and a table of what is no default."""
        out, changed = shown(str(self.options.out)), self.options.differing
        again = f"{out if PurePosixPath(out).name not in ('', '..') else title}-again"
        short = command(["ldmrt", "train", str(PurePosixPath(out) / RECIPE)], [["--out", again]])
        words = [word for key, (value, _) in changed.items() for word in _words(key, value)]
        yield "The recipe beside this card makes the run again:"
        yield block(short, "bash")
        yield "So does the command, with every option that is not at its default:"
        yield block(command(["ldmrt", "train", self.options.task], [*words, ["--out", out]]), "bash")
        rows = [(code(key), _cell(key, value), _cell(key, default)) for key, (value, default) in changed.items()]
        yield table(("option", "value", "default"), rows)

    def _changes(self) -> Iterator[str]:
        """Yield what was changed on the way; nothing where nothing was."""
        if not self.run.changes:
            return
        yield "## Changes on the way"
        yield "The run was resumed with other settings. The commands above have the last ones from the first step on."
        yield "\n".join(
            f"- after step {change['step']}: {code(str(change['name']))} was {_setting(change['before'])} and is "
            f"{_setting(change['now'])}"
            for change in self.run.changes
        )


def shown(text: str) -> str:
    """Return a path as it was typed, or its last part alone where it is absolute, after `hf:` or `NAME=` if any."""
    head, path = re.fullmatch(r"(hf:|\w+=|)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    absolute = [kind(path) for kind in (PurePosixPath, PureWindowsPath) if kind(path).is_absolute()]
    return head + absolute[0].name if absolute else text


def _licence(card: Path) -> str | None:
    """Return the licence that the card of a folder states, as the hub names it; None where it states none."""
    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(LARGEST).splitlines()
    except OSError:
        return None
    end = lines.index("---", 1) if lines[:1] == ["---"] and "---" in lines[1:] else 0
    named = (re.fullmatch(r"license: *([a-z][a-z0-9.-]*) *", line) for line in lines[:end])
    return next((match[1] for match in named if match and match[1] != "other"), None)  # "other" needs a name and a link


def _name(path: Path) -> str:
    """Return the name of a file or a folder, also of `.` and `..`."""
    return (path if path.name not in ("", "..") else path.resolve()).name


def _texts(key: str, value: Any) -> list[str]:
    """Return the value of an option as texts, without absolute paths."""
    values = value if isinstance(value, list) else [value]
    return [str(one) if key in TEXTS else shown(str(one)) for one in values]


def _words(key: str, value: Any) -> list[list[str]]:
    """Return an option as words of a command line, once for each of its values."""
    name = f"--{key.replace('_', '-')}"
    return [[name]] if value is True else [[name, text] for text in _texts(key, value)]


def _cell(key: str, value: Any) -> str:
    """Write the value of an option as Markdown; None is nothing."""
    return "" if value is None else ", ".join(map(code, _texts(key, value)))


def _setting(value: object) -> str:
    return "the default" if value is None else code(shown(str(value)))


def _curves(lines: Sequence[JsonObject], every: int) -> Mapping[str, Points]:
    """Return the points (step, loss) of a log, at most `POINTS` means, those of held-out images too.

    A mean is of a multiple of `every` steps, so a line more, where a run was stopped and resumed, changes none.
    """
    taken = [line for line in lines if "validation" not in line]
    held = [(line["step"], line["loss"]) for line in lines if "validation" in line and line["loss"] is not None]
    if not taken:
        return {}
    width = every * -(-taken[-1]["step"] // (every * POINTS))
    sums, samples = dict[int, tuple[int, float, int]](), 0
    for line in taken:
        count, samples = line["samples"] - samples, line["samples"]
        place = (line["step"] - 1) // width
        _, total, before = sums.get(place, (0, 0.0, 0))
        sums[place] = (line["step"], total + count * line["loss"], before + count)
    means = [(step, total / count) for step, total, count in sums.values() if count]
    return {name: points for name, points in {"loss": means, "held-out images": held}.items() if points}


def _validation(lines: Sequence[JsonObject]) -> Iterator[str]:
    """Yield a table of some of the losses of held-out images, with the last."""
    chosen = [lines[i] for i in sorted({(len(lines) - 1) * row // (ROWS - 1) for row in range(ROWS)})] if lines else []
    rows = [(str(line["step"]), "not finite" if line["loss"] is None else f"{line['loss']:.4g}") for line in chosen]
    if rows:
        yield table(("step", "loss of held-out images"), rows)
