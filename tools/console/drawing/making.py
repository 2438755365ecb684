"""Record how an image came about, so that it can be drawn again: request, inputs, bundle and backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime import host
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.store import engines
from ldmrt.runtime.bundle.hub import local_bundle
from ldmrt.runtime.files.reading import JsonObject, sha256
from ldmrt.runtime.images.png import notes
from ldmrt.runtime.pipeline.infotext.text import infotext_of
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.checks import with_scale
from ldmrt.runtime.pipeline.request.field_names import FIELDS, SHORT
from ldmrt.runtime.pipeline.request.request import EMBEDDINGS, IMAGES, TEXTS, Request
from ldmrt.serve.batch.folder import digest_of_bundle

from .embedded.fields import INFOTEXT

MADE = "made"  # the key of the record in an image's parameters
# Fields that stand elsewhere: in the parameters themselves, among the inputs, or nowhere, as no file can hold them.
ELSEWHERE = {"prompt", "seed", "generator", "num_images_per_prompt", "controls", "latents", *IMAGES}
ELSEWHERE |= {"image_latents", "output_type", "callback_on_step_end", *EMBEDDINGS}
NO_CHANGE = ("backend", "keep_optimized")  # arguments of `open_pipeline` that are not recorded among the others


@dataclass(frozen=True)
class Making:
    """Records images of one run.

    Attributes:
        name: The bundle's name.
        digest: A hash of its files.
        run: What all images share, as JSON.
        first: The stage that the requests begin at.
    """

    name: str
    digest: str
    run: JsonObject
    first: Pipeline

    @classmethod
    def of(cls, bundle: Path, first: Pipeline, opening: Mapping[str, Any], **more: Any) -> "Making":
        """Describe a run.

        Args:
            bundle: The bundle's folder, or its name on the hub.
            first: The stage that the requests begin at.
            opening: The arguments that it was opened with.
            more: What else to record; values that are None are left out.
        """
        folder = local_bundle(bundle)
        opened, digest = Bundle.open(folder, check=False), digest_of_bundle(folder)
        run = {
            "bundle_sha256": digest,
            "certificate": "; ".join(opened.certificate_issues) or "holds",
            "backend": backend_of(opened, str(opening.get("backend", "auto"))),
            "opening": {name: value for name, value in opening.items() if name not in NO_CHANGE and value},
            "processor": host.processor(),
            "versions": host.versions(),
        }
        return cls(bundle.name, digest, run | {name: value for name, value in more.items() if value is not None}, first)

    def notes(
        self, facts: JsonObject, request: Request, image: NDArray[np.uint8], latents: tuple[Path, int] | None = None
    ) -> dict[str, str]:
        """Return the texts for the file of an image.

        Args:
            facts: Its parameters, by short words.
            request: The request of this image alone.
            image: Its pixels, (H, W, 3).
            latents: The file of the latents that it was given, and its place there.
        """
        made = {**self.run, "request": words_of(request), "inputs": inputs_of(request, latents)}
        scheduler, guidance = facts.get("scheduler"), facts.get("guidance")
        text = infotext_of(
            request,
            scheduler if isinstance(scheduler, str) else "",
            guidance if isinstance(guidance, (int, float)) else request.guidance(self.first.stage.guidance_scale),
            (image.shape[0], image.shape[1]) if request.hires is None else self.first.size(request),
            int(facts["seed"]),
            self.name,
            self.digest,
            {name: lora["content_sha256"] for name, lora in self.run.get("loras", {}).items()},
        )
        return {INFOTEXT: str(text), **notes({**facts, MADE: made})}


def backend_of(bundle: Bundle, asked: str) -> str:
    """Return the backend that draws: what "auto" means where no engine was built."""
    return "onnxruntime" if asked == "auto" and not any(engines(bundle.path)) else asked


def words_of(request: Request) -> JsonObject:
    """Return the fields of one image's request that differ from their defaults, by short words."""
    plain = Request("")
    values = {
        SHORT[name]: _alone(getattr(request, name)) if name in (*TEXTS, "variation_seed") else getattr(request, name)
        for name in FIELDS
        if name not in ELSEWHERE and not _same(getattr(request, name), getattr(plain, name))
    }
    return values | ({"prompt": None} if request.prompt is None else {})


def inputs_of(request: Request, latents: tuple[Path, int] | None = None) -> JsonObject:
    """Return the names and hashes of the files that one image's request reads, by short words."""
    inputs: JsonObject = {}
    for name in IMAGES:
        if (images := getattr(request, name)) is not None:
            inputs[SHORT[name]] = _hashed(images)
    if request.controls:
        scaled = {name: with_scale(control) for name, control in request.controls.items()}
        inputs["controls"] = {name: {**_hashed(images), "scale": scale} for name, (images, scale) in scaled.items()}
    if latents is not None:
        path, place = latents
        inputs["latents"] = {**_hashed(path), "place": place}
    return inputs


def _hashed(images: object) -> JsonObject:
    path = Path(str(_alone(images)))
    state = path.stat()
    return {"file": path.name, "sha256": _sha256(path.absolute(), state.st_size, state.st_mtime_ns)}


@lru_cache(1024)
def _sha256(path: Path, size: int, changed: int) -> str:
    """Hash a file once for all images that are made of it, while its size and time stay as they are."""
    return sha256(path)


def _alone(value: object) -> object:
    """Return the item of a list of one."""
    return value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1 else value


def _same(value: object, default: object) -> bool:
    return type(value) is type(default) and bool(value == default)
