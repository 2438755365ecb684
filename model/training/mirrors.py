"""Write the lines of a training's log elsewhere too: to TensorBoard, or to Weights & Biases."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.files.writing import write_atomically

PROJECT = "ldmrt"  # of Weights & Biases
RUN = Path("training") / "wandb.txt"  # has the name of a run there


class Mirror(Protocol):
    """Takes the lines of a log as they are written."""

    def write(self, line: JsonObject) -> None:
        """Write one line."""

    def close(self) -> None:
        """Write what is left."""


def scalars(line: JsonObject) -> dict[str, float]:
    """Return the numbers of a line of a log by name, such as `parts/denoising`; those that are null are left out."""

    def found() -> Iterator[tuple[str, float | None]]:
        for name, value in line.items():
            if name == "loss" and "validation" in line:
                yield "validation/loss", value
            elif isinstance(value, dict):
                yield from ((f"{name}/{part}", each) for part, each in value.items())
            elif isinstance(value, list):
                yield from ((f"{name}/{i}", each) for i, each in enumerate(value))
            elif name != "step":
                yield name, value

    return {name: float(value) for name, value in found() if value is not None}


class TensorBoard:
    """Writes a log as TensorBoard's events, in which steps that come again replace the earlier ones."""

    def __init__(self, folder: Path, step: int) -> None:
        """Write into a folder, of a run that goes on after `step`."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, line: JsonObject) -> None:
        """Write one line."""
        for name, value in scalars(line).items():
            self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class WeightsAndBiases:
    """Sends a log to Weights & Biases; its own variables of the environment say where, or nowhere (WANDB_MODE)."""

    def __init__(self, folder: Path, name: str, config: JsonObject, step: int = 0) -> None:
        """Begin a run, or go on with the one that a file of the folder names.

        Args:
            folder: Where its files are kept.
            name: The run's.
            config: What is shown as the run's settings.
            step: Steps that the run has taken.
        """
        import wandb

        from ldmrt.runtime.errors import LdmrtError, first_line

        place = folder / RUN
        known = place.read_text().strip() if step and place.is_file() else secrets.token_hex(4)
        with write_atomically(place) as file:
            file.write(known.encode())
        try:
            self.run = wandb.init(project=PROJECT, name=name, dir=str(folder), config=config, id=known, resume="allow")
        except Exception as error:  # its own kinds: no account, no network, settings
            hint = "`wandb login`, WANDB_MODE=offline, or no --wandb"
            raise LdmrtError("train", "Weights & Biases does not start", found=first_line(error), hint=hint) from None

    def write(self, line: JsonObject) -> None:
        """Send one line."""
        self.run.log(scalars(line), step=line["step"])

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()
