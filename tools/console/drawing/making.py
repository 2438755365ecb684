"""Write the texts of an image's file: its parameters with the record to draw it again, and AUTOMATIC1111's text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.hub import local_bundle
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.images.exif import INFOTEXT
from ldmrt.runtime.images.png import notes
from ldmrt.runtime.images.resizing import UPSCALERS
from ldmrt.runtime.pipeline.autoencoder.upscale_model import UpscaleModel, open_upscale_model
from ldmrt.runtime.pipeline.infotext.record import (
    KEYS,
    MADE,
    digest_of_bundle,
    inputs_of,
    made,
    made_of_several,
    run_of,
    words_of,
)
from ldmrt.runtime.pipeline.infotext.text import infotext_of
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.request import Request


@dataclass(frozen=True)
class Making:
    """Records images of one run.

    Attributes:
        name: The bundle's name.
        run: What all images share, as JSON.
        first: The stage that the requests begin at.
    """

    name: str
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
        return cls(bundle.name, run_of(local_bundle(bundle), opening, **more), first)

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
        scheduler, guidance = facts.get("scheduler"), facts.get("guidance")
        text = infotext_of(
            request,
            scheduler if isinstance(scheduler, str) else "",
            guidance if isinstance(guidance, (int, float)) else request.guidance(self.first.stage.guidance_scale),
            (image.shape[0], image.shape[1]) if request.hires is None else self.first.size(request),
            int(facts["seed"]),
            self.name,
            str(self.run["bundle_sha256"]),
            {name: lora["content_sha256"] for name, lora in self.run.get("loras", {}).items()},
        )
        return {INFOTEXT: str(text), **notes({**facts, MADE: made(self.run, request, latents)})}

    def grid_notes(
        self, facts: JsonObject, images: Sequence[tuple[Request, tuple[Path, int] | None]], columns: int
    ) -> dict[str, str]:
        """Return the texts for the file of a grid of images.

        Args:
            facts: Their parameters, by short words.
            images: The request of each image alone, and the file of its latents with their place there.
            columns: How many of them stand in a row.
        """
        records = [made(self.run, request, latents) for request, latents in images]
        return notes({**facts, MADE: made_of_several(records, columns)})

    def animation_facts(self, facts: JsonObject, requests: Sequence[Request]) -> JsonObject:
        """Return the parameters of an animation, or of a frame of one.

        Args:
            facts: What else they hold, by short words.
            requests: Those that frames are drawn between.
        """
        keys = [{"request": words_of(request), "inputs": inputs_of(request)} for request in requests]
        return {**facts, MADE: {**self.run, KEYS: keys}}


def open_hires_upscaler(name: str, opening: Mapping[str, Any]) -> UpscaleModel | None:
    """Open the upscale model that a second pass is drawn through, on the backend that draws.

    Args:
        name: The folder of its bundle; or a name of `UPSCALERS`, for which there is none.
        opening: The arguments that the bundle is opened with.
    """
    if name in UPSCALERS:
        return None
    shared = {argument: opening[argument] for argument in ("backend", "threads", "compute") if argument in opening}
    return open_upscale_model(name, **shared)


def upscaler_record(folder: str) -> JsonObject:
    """Describe the bundle of an upscale model as an image's record holds it."""
    return {"bundle": Path(folder).name, "sha256": digest_of_bundle(Path(folder))}
