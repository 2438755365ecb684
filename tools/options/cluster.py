"""Options of commands that can draw on a Ray cluster."""

from functools import wraps
from typing import Any

import click

from ldmrt.runtime.errors import LdmrtError

from .drawing import Decorator, with_options

# The values but the flag's are arguments of `Scale.read`, None where they were not given.
RAY: tuple[Decorator, ...] = (
    click.option(
        "--ray", "on_ray", is_flag=True, help="Draw on a Ray cluster: RAY_ADDRESS, or this machine's; else one here."
    ),
    click.option("--replicas", metavar="N|MIN-MAX", help="With --ray: processes that draw, each with a batcher; 1."),
    click.option("--cpus", type=float, help="With --ray: cores of a replica; 1."),
    click.option("--gpus", type=float, help="With --ray: GPUs of a replica, a fraction shares one; 0."),
)


def with_ray(command: Any) -> Any:
    """Give a command the options of `RAY`, whose values it takes as `ray`: None without --ray, else those given.

    An `LdmrtError` refuses the others without --ray.
    """

    @wraps(command)
    def run(*arguments: Any, **values: Any) -> Any:
        on_ray, replicas = values.pop("on_ray"), values.pop("replicas")
        numbers = {name: values.pop(name, None) for name in ("cpus", "gpus", "models")}
        scale = {name: value for name, value in {"replicas": replicas, **numbers}.items() if value is not None}
        if scale and not on_ray:
            raise LdmrtError(f"--{next(iter(scale))}", "it is an option of --ray", hint="add --ray")
        return command(*arguments, ray={"replicas": "1", **scale} if on_ray else None, **values)

    return with_options(RAY)(run)
