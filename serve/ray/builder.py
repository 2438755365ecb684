"""Build the application that `serve run ldmrt.serve.ray:app` and configs of Ray Serve name."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from ldmrt.runtime.errors import LdmrtError
from ldmrt.serve.http.access import read_keys
from ldmrt.serve.http.state import Limits
from ldmrt.serve.jobs.defaults import GRACE, SECONDS, WAITING
from ldmrt.serve.models.naming import named

from .bundles import path_everywhere
from .deploying import Deployment, with_ingress
from .scale import Scale


class Arguments(BaseModel):
    """Holds the arguments of the application, named as the options of `ldmrt serve`.

    Attributes:
        bundles: Bundles as NAME=BUNDLE or BUNDLE: a list, or a text with commas between them.
        replicas: How many replicas draw: "N", or "MIN-MAX".
        cpus: The cores of each replica.
        gpus: The GPUs of each; a fraction shares one.
        models: How many models each keeps in memory.
        rows: The rows of a call of the U-Net; measured by default.
        keys: The file of API keys.
        waiting: Requests that may wait.
        per_key: Requests of one key that may wait or run; 0 for any number.
        timeout: Seconds after which a request is given up.
        grace: Seconds that requests have where a replica is stopped.
        backend: As `open_pipeline` has it, like the next three.
        compute: The precision of OpenVINO.
        threads: Of the CPU; 0 for as many as the replica has cores.
        low_memory: Whether one network is in memory at a time.
    """

    model_config = ConfigDict(extra="forbid")

    bundles: str | list[str]
    replicas: str | int = "1"
    cpus: float = 1.0
    gpus: float = 0.0
    models: int = 1
    rows: int | None = None
    keys: Path | None = None
    waiting: int = WAITING
    per_key: int = 0
    timeout: float = SECONDS
    grace: float = GRACE
    backend: str = "auto"
    compute: str = "fp32"
    threads: int = 0
    low_memory: bool = False


def app(arguments: Arguments) -> Application:
    """Build the application.

    Raises:
        LdmrtError: An argument is invalid.
    """
    given = arguments.bundles.split(",") if isinstance(arguments.bundles, str) else arguments.bundles
    paths = named([bundle.strip() for bundle in given if bundle.strip()])
    bundles = {name: path_everywhere(path) for name, path in paths.items()}
    if not bundles:
        raise LdmrtError("serve", "no bundles", hint="bundles=out/emoji64")
    scale = Scale.read(str(arguments.replicas), arguments.cpus, arguments.gpus, arguments.models)
    asked = {name: getattr(arguments, name) for name in ("backend", "compute", "threads", "low_memory")}
    owners = {} if arguments.keys is None else read_keys(arguments.keys)
    deployment = Deployment(bundles, scale, arguments.rows, scale.opening(asked), arguments.grace)
    limits = Limits(seconds=arguments.timeout, per_key=arguments.per_key)
    return with_ingress(deployment, limits, owners, arguments.waiting)
