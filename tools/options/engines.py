"""Options of the commands that build or predict engines."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from ldmrt.runtime.bundle.graphs import STEPS

from .common import Choice

if TYPE_CHECKING:
    from ldmrt.export.engines.profiles import Wanted
    from ldmrt.runtime.bundle.bundle import Bundle


P = ParamSpec("P")
R = TypeVar("R")


def profile_options(command: Callable[P, R]) -> Callable[P, R]:
    """Give a command the options that say for which images engines are built."""
    options = (
        click.option("--sizes", help="Images, WIDTHxHEIGHT: 512x512,768x512, or a range, 512-1024x512-1024; the "
                     "model's own size by default."),
        click.option("--batch", default="1", show_default=True, help="Images per call, such as 1-4 or 1,4."),
        click.option("--guidance", type=Choice(["on", "off", "any"]), default="on", show_default=True,
                     help="Guidance doubles the U-Net's batch; any builds for both."),
        click.option("--components", "only", help="Components to build, such as unet,vae_decoder; all by default."),
        click.option("--folded", is_flag=True, help="Also the fused step, which runs a sampler's row as one call."),
        click.option("--steps", default=STEPS, show_default=True, help="Most steps of a sampler in the fused step."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def wanted_profiles(bundle: "Bundle", sizes: str | None, batch: str, guidance: str, steps: int) -> "Wanted":
    """Parse the options of sizes, batches and guidance."""
    from ldmrt.export.engines.profiles import Wanted

    return Wanted.read(sizes, batch, guidance, bundle.shape.size, steps)


def targets_of(words: str) -> list[str]:
    """Parse GPU names such as "sm89,this"; `this` becomes this machine's GPU."""
    from ldmrt.runtime.backends.gpu import compute_capability

    names = [word.strip().lower() for word in words.split(",")]
    return list(dict.fromkeys(compute_capability() if name == "this" else name for name in names))


def chosen_graphs(bundle: "Bundle", only: str | None, folded: bool) -> list[str]:
    """Return the graphs that `--components` and `--folded` select.

    Raises:
        LdmrtError: A component is unknown, or the bundle has no fused step.
    """
    from ldmrt.runtime.bundle.graphs import STEP
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.nearest import suggestion

    names = list(bundle.components) if only is None else [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in bundle.components]:
        problem = f"no component {unknown[0]!r}{suggestion(unknown[0], bundle.components)}"
        raise LdmrtError("--components", problem, expected=", ".join(bundle.components))
    if folded and STEP not in bundle.graphs:
        problem, hint = f"{bundle.path} has no fused step", "ldmrt export CHECKPOINT BUNDLE, without controls"
        raise LdmrtError("--folded", problem, hint=hint)
    return [name for name in bundle.graphs if name in names or (folded and name == STEP)]
