"""Options of the commands that build or predict engines."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

import click

from ldmrt.runtime.bundle.graphs import STEP, STEPS

from .common import Choice, Share

if TYPE_CHECKING:
    from ldmrt.export.engines.profiles import Wanted
    from ldmrt.runtime.bundle.bundle import Bundle

R = TypeVar("R")


@dataclass(frozen=True)
class EngineOptions:
    """Holds the options that say which engines are built, and for which images."""

    sizes: str | None
    batch: str
    guidance: str
    only: str | None
    folded: bool
    steps: int
    weights_on_gpu: float | None

    @property
    def chosen(self) -> bool:
        """Tell whether engines are asked for that one stage alone may have: of sizes, of components, fused."""
        return self.sizes is not None or self.only is not None or self.folded

    @property
    def flags(self) -> list[str]:
        """Return the flags of the engines' recipes."""
        from ldmrt.runtime.bundle.engines.engine_key import WEIGHTS_ON_GPU

        return [] if self.weights_on_gpu is None else [f"{WEIGHTS_ON_GPU}{self.weights_on_gpu:g}"]

    def wanted(self, bundle: "Bundle") -> "Wanted":
        """Parse sizes, batches and guidance."""
        from ldmrt.export.engines.profiles import Wanted

        return Wanted.read(self.sizes, self.batch, self.guidance, bundle.stage.size, self.steps)

    def graphs(self, bundle: "Bundle") -> list[str]:
        """Return the graphs that `--components` and `--folded` select.

        Raises:
            LdmrtError: A component is unknown, or the bundle has no fused step.
        """
        from ldmrt.runtime.errors import LdmrtError
        from ldmrt.runtime.nearest import check_known

        names = list(bundle.components) if self.only is None else [name.strip() for name in self.only.split(",")]
        check_known("--components", names, bundle.components)
        if self.folded and STEP not in bundle.graphs:
            problem, hint = f"{bundle.path} has no fused step", "ldmrt export CHECKPOINT BUNDLE, without controls"
            raise LdmrtError("--folded", problem, hint=hint)
        return [name for name in bundle.graphs if name in names or (self.folded and name == STEP)]


def engine_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options that say which engines are built; it takes them as `engines`, `EngineOptions`."""

    @wraps(command)
    def with_engines(**parameters: object) -> R:
        names = [field.name for field in fields(EngineOptions)]
        engines = EngineOptions(**{name: parameters.pop(name) for name in names})  # type: ignore[arg-type]
        return command(engines=engines, **parameters)

    options = (
        click.option("--sizes", help="Images, WIDTHxHEIGHT: 512x512,768x512, or a range, 512-1024x512-1024; the "
                     "model's own size by default."),
        click.option("--batch", default="1", show_default=True, help="Images per call, such as 1-4 or 1,4."),
        click.option("--guidance", type=Choice(["on", "off", "any"]), default="on", show_default=True,
                     help="Guidance doubles the U-Net's batch; any builds for both."),
        click.option("--components", "only", help="Components to build, such as unet,vae_decoder; all by default."),
        click.option("--folded", is_flag=True, help="Also the fused step, which runs a sampler's row as one call."),
        click.option("--steps", default=STEPS, show_default=True, help="Most steps of a sampler in the fused step."),
        click.option("--weight-streaming", "weights_on_gpu", type=Share(), metavar="SHARE",
                     help="The share of the weights that stays on the GPU, 0 to 1; the rest is streamed from the host "
                     "at every run."),
    )  # fmt: skip
    decorated: Callable[..., R] = with_engines
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def targets_of(words: str) -> list[str]:
    """Parse GPU names such as "sm89,this"; `this` becomes this machine's GPU."""
    from ldmrt.runtime.backends.gpu import compute_capability

    names = [word.strip().lower() for word in words.split(",")]
    return list(dict.fromkeys(compute_capability() if name == "this" else name for name in names))
