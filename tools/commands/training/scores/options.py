"""Refuse options of `ldmrt evaluate` that would have no effect, and measures that lack one."""

from collections.abc import Sequence

import click

from ldmrt.runtime.errors import LdmrtError

from .measures import OF_CAPTIONS, OF_FEATURES, OF_NETWORK

EMOJI = {"style": "--style", "groups": "--group"}
OF_IMAGES = {"features": "--features", "sheet": "--sheet", "validation": "--validation"}
SAMPLING = {"steps": "--steps", "guidance": "--guidance", "scheduler": "--scheduler"}


def check_options(
    stage: str | None, noise_level: int | None, own: bool, measures: Sequence[str], given: Sequence[str]
) -> None:
    """Refuse options that would have no effect, and measures of what is not there.

    Args:
        stage: The stage that enlarges.
        noise_level: Its noise level.
        own: Whether the images are of one's own, and no stage is scored.
        measures: What is measured: as asked for, or by default.
        given: The names of the options on the command line.

    Raises:
        LdmrtError: Names the option.
    """
    if stage is None and noise_level is not None:
        raise LdmrtError("evaluate", "--noise-level needs --stage", hint="--stage NAME, or no --noise-level")
    idle, where = OF_IMAGES, "without captioned images in --data"
    if own:
        idle, where = EMOJI, "with images of your own"
    elif stage is not None:
        others = {"measures": "--measure", "clip": "--clip", "guidance": "--guidance"}
        idle, where = {**EMOJI, **OF_IMAGES, **others}, "with --stage"
    refuse(idle, where, given)
    if stage is not None:
        return
    if not own and (wrong := [name for name in measures if name not in OF_CAPTIONS]):
        raise LdmrtError(
            "evaluate", f"--measure {wrong[0]} has no effect {where}", expected=", ".join(OF_CAPTIONS),
            hint=f"no --measure {wrong[0]}",
        )  # fmt: skip
    check_measures(measures, given)


def check_measures(measures: Sequence[str], given: Sequence[str]) -> None:
    """Refuse options of measures that are not asked for, and a CLIP score without a CLIP model.

    Raises:
        LdmrtError: Names the option.
    """
    for option, measure in (("sheet", "memorisation"), ("clip", "clip")):
        if option in given and measure not in measures:
            hint = f"--measure {measure}, or no --{option}"
            raise LdmrtError("evaluate", f"--{option} needs --measure {measure}", hint=hint)
    if "clip" in measures and "clip" not in given:
        raise LdmrtError("evaluate", "--measure clip needs --clip", hint="--clip FOLDER, or a name on the hub")
    if measures and set(OF_FEATURES).isdisjoint(measures):
        refuse({"features": "--features"}, f"on {', '.join(measures)}", given)
    if measures and set(OF_NETWORK).issuperset(measures):
        refuse(SAMPLING, f"on {', '.join(measures)}, which draws no image", given)


def refuse(idle: dict[str, str], where: str, given: Sequence[str]) -> None:
    """Refuse those of some options that are given.

    Raises:
        LdmrtError: Names the first.
    """
    for name, option in idle.items():
        if name in given:
            raise LdmrtError("evaluate", f"{option} has no effect {where}", hint=f"no {option}")


def given_options() -> list[str]:
    """Return the names of the options that the command line holds."""
    from click.core import ParameterSource

    context = click.get_current_context()
    return [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
