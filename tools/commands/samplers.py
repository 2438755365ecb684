"""Run `ldmrt samplers`: list the samplers, show their plans, and plot their grids."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmrt.runtime.samplers.config import CONFIG
from ldmrt.tools.console.outputs import Output

if TYPE_CHECKING:
    from ldmrt.runtime.files.reading import JsonObject
    from ldmrt.runtime.samplers.config import Config
    from ldmrt.runtime.samplers.plan import Plan

STEPS = 20
PLOTTED = ("ddim", "euler", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_exponential", "dpmpp_2m_beta")  # if none is named
SYMBOLS = "m: prediction; x0: predicted clean latents; z: unit noise; s1, s2: latents saved for later rows"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--steps", type=int, help=f"Steps of the plans; {STEPS} by default.")
@click.option("--strength", type=float, help="Share of the steps that run, as with a start image; 1 by default.")
@click.option(
    "--config",
    "source",
    type=click.Path(path_type=Path),
    help="scheduler_config.json, or a bundle or checkpoint with one; Stable Diffusion's by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.option("--plot", "out", type=Output(), help="Plot timesteps and noise levels: png, svg, pdf.")
def samplers(
    names: tuple[str, ...],
    steps: int | None,
    strength: float | None,
    source: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """List the samplers, or show what each row of the plans of NAMES computes.

    Example: ldmrt samplers dpmpp_2m_karras --steps 8
    """
    if as_json and out is not None:
        raise click.UsageError("--json cannot be combined with --plot; expected: only one of them")
    if (steps, strength) != (None, None) and (as_json or not (names or out)):
        raise click.UsageError("--steps and --strength need NAMES or --plot: the list does not depend on them")
    config = CONFIG if source is None else read_config(source)
    steps, strength = STEPS if steps is None else steps, 1.0 if strength is None else strength
    if out is not None:
        from ldmrt.tools.reports.sampler_plot import plot

        plot({name: plan(config, name, steps, strength) for name in names or PLOTTED}, out)
        click.echo(out)
    elif names and not as_json:
        plans = {name: plan(config, name, steps, strength) for name in names}
        for name, table in plans.items():
            start = f", starts from unit noise times {table.prior_scale:.6g}" if strength == 1.0 else ""
            click.echo(f"{name}: {steps} steps, {table.rows} rows{start}\n{table}\n")
        click.echo(SYMBOLS)
    else:
        listed = described(config, names)
        if as_json:
            click.echo(json.dumps(listed, indent=2))
        else:
            show(listed, config)


def read_config(source: Path) -> "JsonObject":
    """Read a scheduler_config.json, or that of a bundle or checkpoint."""
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.files.reading import read_json

    name = "scheduler_config.json"
    path = next((path for path in (source, source / name, source / "scheduler" / name) if path.is_file()), None)
    if path is None:
        raise LdmrtError("samplers", f"no {name} at {source}", expected="that file, a bundle or a checkpoint")
    return read_json("samplers", path)


def plan(config: "Config", name: str, steps: int, strength: float = 1.0, eta: float | None = None) -> "Plan":
    """Return the plan of a sampler by its everyday name, such as dpmpp_2m_karras."""
    from ldmrt.runtime.samplers.registry import plan_from_config

    tokens = int(config.get("max_image_seq_len") or 4096)  # a dynamic shift is that of the largest image
    return plan_from_config(config, steps, name=name, strength=strength, eta=eta, tokens=tokens)


def described(config: "Config", names: Sequence[str] = ()) -> "list[JsonObject]":
    """Describe samplers by their plans of 10 and 20 steps; `problem` if the config does not allow a plan.

    Raises:
        LdmrtError: The config allows none of them.
    """
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.samplers.config import KEYS
    from ldmrt.runtime.samplers.registry import SCHEDULERS, SPACINGS, find_scheduler

    out, problems = [], []
    for name in names or SCHEDULERS:
        scheduler, _ = find_scheduler(config, name)
        keys = KEYS[scheduler.class_name]
        line = {
            "name": name,
            "class": scheduler.class_name,
            "order": scheduler.order,
            "eta": scheduler.eta,
            "grids": list(scheduler.given),
            "endings": [kind for kind in SPACINGS if f"use_{kind}_sigmas" in keys and name in SCHEDULERS],
        }
        try:
            ten, twenty = plan(config, name, 10), plan(config, name, 20)
            most = ten if scheduler.eta is None else plan(config, name, 10, eta=1.0)
        except LdmrtError as error:
            out.append({**line, "problem": str(error)})
            problems.append(error)
            continue
        a_step = (twenty.rows - ten.rows) // 10
        noise = "yes" if _draws(ten) else "with eta" if _draws(most) else "no"
        out.append({**line, "evaluations": {"a_step": a_step, "more": ten.rows - 10 * a_step}, "noise": noise})
    if len(problems) == len(out):
        raise problems[0]
    return out


def _draws(plan: "Plan") -> bool:
    return any(map(plan.draws, range(plan.rows)))


def show(listed: "Sequence[JsonObject]", config: "Config") -> None:
    """Print the list as a table."""
    from ldmrt.runtime.samplers.registry import SPACINGS, everyday_name
    from ldmrt.tools.console import tables

    rows: list[tuple[str, ...]] = []
    problems: dict[str, list[str]] = {}
    for line in listed:
        if "problem" in line:
            problems.setdefault(line["problem"], []).append(line["name"])
            measured = ("", "")
        else:
            measured = (evaluations(**line["evaluations"]), line["noise"])
        eta = "" if line["eta"] is None else f"{line['eta']:g}"
        rows.append((line["name"], line["class"], str(line["order"]), *measured, eta, ", ".join(line["grids"])))
    tables.show(("name", "class in diffusers", "order", "calls", "noise", "eta", "own grid"), rows)
    for problem, names in problems.items():
        click.secho(f"unsupported with this config: {', '.join(names)}: {problem}", fg="yellow")
    click.echo("calls: of the network, in N steps; eta: the share of fresh noise, if it can be chosen")
    endings = ", ".join(f"_{kind}" for kind in SPACINGS)
    takers = ", ".join(line["name"] for line in listed if len(line["endings"]) == len(SPACINGS))
    click.echo(f"other spacings of noise levels: append {endings} to {takers}")
    if own := everyday_name(config):
        click.echo(f"this config's own: {own}")


def evaluations(a_step: int, more: int) -> str:
    """Write the number of evaluations as a formula of the steps."""
    times = "N" if a_step == 1 else f"{a_step} N"
    return f"{times} {'+' if more > 0 else '-'} {abs(more)}" if more else times
