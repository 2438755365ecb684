"""Say how many replicas draw, and what of a machine each of them has."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldmrt.runtime.errors import LdmrtError

BUSY = 8  # requests that a replica draws at a time before another one is started: they fill a call of most U-Nets
RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True)
class Scale:
    """Holds how many replicas draw, and what each has.

    Attributes:
        least: How many there are at least.
        most: How many there are at most; between both Ray follows the number of requests.
        cpus: The cores of each.
        gpus: The GPUs of each; a fraction shares one.
        models: How many models each keeps in memory.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    models: int = 1

    @classmethod
    def read(cls, replicas: str, cpus: float = 1.0, gpus: float = 0.0, models: int = 1) -> "Scale":
        """Read the number of replicas: "4", or "1-4".

        Raises:
            LdmrtError: It is neither, or nothing could draw.
        """
        found = RANGE.fullmatch(replicas.strip())
        least = int(found[1]) if found else 0
        most = int(found[2] or found[1]) if found else 0
        if most < max(1, least):
            expected = "N of 1 or more, or MIN-MAX"
            raise LdmrtError("--replicas", "no number of replicas", expected=expected, found=repr(replicas))
        for name, value, lowest in (("--cpus", cpus, 0.0), ("--gpus", gpus, 0.0), ("--models", models, 1)):
            if not lowest <= value < float("inf"):
                raise LdmrtError(name, "out of range", expected=f"{lowest:g} or more", found=value)
        if gpus > 1 and gpus % 1:
            raise LdmrtError("--gpus", "out of range", expected="a fraction of one GPU, or whole ones", found=gpus)
        return cls(least, most, cpus, gpus, models)

    def opening(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments of `open_pipeline` for a replica: a thread for each core where no number is asked for."""
        return {**asked, "threads": asked.get("threads") or max(1, int(self.cpus))}

    @property
    def options(self) -> dict[str, Any]:
        """The options of a deployment."""
        actor = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.least == self.most:
            return {"ray_actor_options": actor, "num_replicas": self.least}
        follows = {"min_replicas": self.least, "max_replicas": self.most, "target_ongoing_requests": BUSY}
        return {"ray_actor_options": actor, "autoscaling_config": follows}
