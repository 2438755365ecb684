"""Deploy replicas that draw, and what answers HTTP requests before them."""

import contextlib
import logging
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.http.app import application
from ldmrt.serve.http.metrics import Metrics
from ldmrt.serve.http.state import Limits, Server
from ldmrt.serve.jobs.defaults import GRACE, WAITING
from ldmrt.serve.jobs.observers import JobLog, Observer, Observers
from ldmrt.serve.jobs.tracing import tracing

from .cluster import joined
from .replica import MOST_ONGOING, Replica
from .replicas import DeployedReplicas
from .scale import BUSY, Scale
from .service import RayService

log = logging.getLogger("ldmrt.serve")
CONNECTIONS = 1024  # that are answered at a time


@dataclass(frozen=True)
class Deployment:
    """Holds what is deployed.

    Attributes:
        bundles: The bundles by name, folders that all machines see or names on the hub; the first is the default.
        scale: How many replicas draw.
        rows: The rows of a call of the U-Net at the model's own size; None measures them.
        opening: Arguments of `open_pipeline`.
        grace: The seconds that requests have where a replica is stopped.
    """

    bundles: Mapping[str, str]
    scale: Scale = field(default_factory=Scale)
    rows: int | None = None
    opening: Mapping[str, Any] = field(default_factory=dict)
    grace: float = GRACE

    @property
    def take_turns(self) -> bool:
        """Whether a replica keeps fewer models in memory than there are.

        Ray Serve then prefers replicas that have a request's model, until they are busy: so they are sooner.
        """
        return self.scale.models < len(self.bundles)

    @property
    def replicas(self) -> serve.Application:
        """The replicas as an application of Ray Serve."""

        class Multiplexed(Replica):
            """Keeps the models that were used last."""

            loaded = serve.multiplexed(max_num_models_per_replica=self.scale.models)(Replica.loaded)

        deployed = serve.deployment(
            name="replica",
            max_ongoing_requests=2 * BUSY if self.take_turns else MOST_ONGOING,
            graceful_shutdown_timeout_s=self.grace,
            **self.scale.options,
        )(Multiplexed)
        return deployed.bind(dict(self.bundles), self.rows, dict(self.opening))

    @contextlib.contextmanager
    def opened(self) -> Iterator[dict[str, Pipeline]]:
        """Open the bundles, but none of their networks.

        Raises:
            BundleError: A bundle is missing or damaged.
        """
        with contextlib.ExitStack() as opened:
            yield {
                name: opened.enter_context(open_pipeline(bundle, **self.opening))
                for name, bundle in self.bundles.items()
            }

    def service(
        self, models: Mapping[str, Pipeline], handle: DeploymentHandle, waiting: int, observer: Observer
    ) -> RayService:
        """Start a service that draws by replicas; so many requests may wait."""
        replicas = DeployedReplicas(handle, take_turns=self.take_turns)
        number = max(1, self.scale.least)
        return RayService(models, replicas, number=number, waiting=waiting, observer=observer)

    @contextlib.contextmanager
    def deployed(self) -> Iterator[DeploymentHandle]:
        """Deploy the replicas alone, and delete them at the end; the caller has joined a cluster.

        They are an application of their own, beside those of other commands.

        Raises:
            LdmrtError: They cannot be started.
        """
        there, wanted = ray.cluster_resources().get("GPU", 0), self.scale.gpus * max(1, self.scale.least)
        if there < wanted:
            log.warning("the cluster has %g GPUs, and the replicas wait until it has %g", there, wanted)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")  # unless Ray Serve runs already
        name = f"ldmrt-{uuid.uuid4().hex[:8]}"
        try:
            try:
                handle = serve.run(self.replicas, name=name, route_prefix=None)
            except RuntimeError as error:
                hint = "`serve status`, and the logs of the replicas"
                raise LdmrtError("--ray", "the replicas do not start", found=first_line(error), hint=hint) from None
            yield handle
        finally:
            serve.delete(name)

    @contextlib.contextmanager
    def serving(self, waiting: int, observer: Observer) -> Iterator[RayService]:
        """Join a cluster, deploy the replicas, and start a service that draws by them."""
        with contextlib.ExitStack() as opened:
            models = opened.enter_context(self.opened())  # before a cluster is started for a bundle that is not there
            opened.enter_context(joined())
            handle = opened.enter_context(self.deployed())
            yield opened.enter_context(contextlib.closing(self.service(models, handle, waiting, observer)))


@serve.ingress()
class Ingress:
    """Answers HTTP requests as `ldmrt serve` does, and has replicas draw them."""

    def __init__(
        self, replicas: DeploymentHandle, deployment: Deployment, limits: Limits, owners: dict[str, str], waiting: int
    ) -> None:
        """Open the bundles, but none of their networks.

        Args:
            replicas: The handle of what draws.
            deployment: What is deployed.
            limits: Bounds what callers may send.
            owners: The owner of each API key, by its SHA-256.
            waiting: How many requests may wait.
        """
        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("ldmrt.serve").setLevel(logging.INFO)
        with contextlib.ExitStack() as opened:
            metrics = Metrics()
            models = opened.enter_context(deployment.opened())
            observers = Observers(metrics, JobLog(), *opened.enter_context(tracing()))
            service = deployment.service(models, replicas, waiting, observers)
            opened.enter_context(contextlib.closing(service))
            self._server = Server(service, metrics, limits, owners)
            self._closing = opened.pop_all()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return what answers; Ray Serve asks for it."""
        return application(self._server)

    def __del__(self) -> None:
        """Give up what still waits; Ray Serve has waited for requests over HTTP."""
        self._closing.close()


def with_ingress(
    deployment: Deployment, limits: Limits, owners: dict[str, str], waiting: int = WAITING
) -> serve.Application:
    """Return the replicas and what answers HTTP requests as one application of Ray Serve."""
    deployed = serve.deployment(
        name="http",
        num_replicas=1,  # it keeps the results that can be asked for by their names
        max_ongoing_requests=CONNECTIONS,
        graceful_shutdown_timeout_s=deployment.grace,
        ray_actor_options={"num_cpus": 0},
    )(Ingress)
    return deployed.bind(deployment.replicas, deployment, limits, owners, waiting)
