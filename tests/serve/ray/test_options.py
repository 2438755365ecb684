"""What can be asked of a cluster, and what is said where it cannot."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from pydantic import ValidationError

from ldmrt.runtime import LdmrtError
from ldmrt.serve.ray import app
from ldmrt.serve.ray.builder import Arguments
from ldmrt.serve.ray.scale import BUSY, Scale


@pytest.mark.parametrize(("replicas", "least", "most"), [("1", 1, 1), ("4", 4, 4), ("1-4", 1, 4), ("0-2", 0, 2)])
def test_numbers_of_replicas(replicas: str, least: int, most: int) -> None:
    scale = Scale.read(replicas, gpus=0.5)
    assert (scale.least, scale.most) == (least, most)
    follows = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": BUSY}
    number = {"num_replicas": most} if least == most else {"autoscaling_config": follows}
    assert scale.options == {"ray_actor_options": {"num_cpus": 1.0, "num_gpus": 0.5}, **number}


@pytest.mark.parametrize("replicas", ["", "0", "0-0", "4-1", "-1", "1-", "a", "1.5", "1-2-3"])
def test_numbers_that_are_none(replicas: str) -> None:
    with pytest.raises(LdmrtError, match="--replicas: no number of replicas"):
        Scale.read(replicas)


@pytest.mark.parametrize("values", [{"cpus": -1.0}, {"gpus": 1.5}, {"gpus": float("nan")}, {"models": 0}])
def test_resources_that_are_none(values: dict[str, Any]) -> None:
    with pytest.raises(LdmrtError, match="out of range"):
        Scale.read("1", **values)


def test_threads_are_the_cores_of_a_replica() -> None:
    scale = Scale.read("1", cpus=2.5)
    assert [scale.opening({"threads": threads})["threads"] for threads in (0, 3)] == [2, 3]
    assert Scale.read("1", cpus=0.5).opening({}) == {"threads": 1}


def deployed(arguments: dict[str, Any]) -> Any:
    """The ingress of an application, with what it is given."""
    return app(Arguments.model_validate(arguments))._bound_deployment


def test_arguments_of_the_application(tmp_path: Path) -> None:
    """As `serve run` gives them, all of them texts; other machines find the bundles by their whole paths."""
    (tmp_path / "b").mkdir()
    given = {"bundles": f"a=owner/name, {tmp_path}/b/", "replicas": "1-4", "gpus": "0.25", "cpus": "3", "per_key": "2"}
    http = deployed(given)
    replicas, deployment, limits, owners, waiting = http.init_args
    assert deployment.bundles == {"a": "owner/name", "b": str(tmp_path / "b")}
    assert (limits.per_key, limits.seconds, owners, waiting, deployment.opening["threads"]) == (2, 600, {}, 64, 3)
    assert http.num_replicas == 1
    replica = replicas._bound_deployment
    assert replica.ray_actor_options == {"num_cpus": 3.0, "num_gpus": 0.25}
    assert replica._deployment_config.autoscaling_config.max_replicas == 4


def test_arguments_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="nonsense"):
        Arguments.model_validate({"bundles": "a", "nonsense": "1"})
    for given, problem in (
        ({"bundles": " , "}, "no bundles"),
        ({"bundles": ["a", "b/a"]}, "two models have the name 'a'"),
        ({"bundles": "a", "replicas": "many"}, "no number of replicas"),
        ({"bundles": "a", "keys": str(tmp_path / "keys")}, "keys"),
    ):
        with pytest.raises(LdmrtError, match=problem):
            app(Arguments.model_validate(given))
