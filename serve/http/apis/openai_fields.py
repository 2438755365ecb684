"""Describe the fields of OpenAI's images API, and which of them are heeded."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.serve.http.bodies import Options

Form = Literal["b64_json", "url"]
# Values of OpenAI's fields that ask for nothing here; others would change the answer, and are refused.
NOTHING: dict[str, tuple[object, ...]] = {
    "background": ("auto", "opaque"),
    "stream": (False,),
    "partial_images": (0,),
    "input_fidelity": ("low",),
    "frame_count": (),
    "frame_duration_ms": (),
    "svg": (),
    "markup": (),
}


class OpenAIFields(BaseModel):
    """Holds the fields that a generation and an edit have in OpenAI's API."""

    prompt: str
    model: str | None = None
    n: int | None = Field(None, ge=1)
    size: str | None = Field(None, description="auto, or WIDTHxHEIGHT in pixels; the model's own by default.")
    response_format: Form | None = Field(None, description="b64_json by default.")
    output_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="png by default.")
    output_compression: int | None = Field(None, ge=0, le=100, description="The quality of jpeg and webp.")
    background: str | None = None
    stream: bool | None = None
    partial_images: int | None = None
    input_fidelity: str | None = None
    frame_count: int | None = None
    frame_duration_ms: int | None = None
    svg: Any = None
    markup: Any = None
    # These are not heeded.
    quality: str | None = None
    complexity: str | None = None
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None

    def common(self) -> dict[str, Any]:
        """Return the fields of a `Request` that this asks for, but the prompt.

        Raises:
            InvalidRequest: A field asks for what is not served.
        """
        for name, values in NOTHING.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                expected = " or ".join(map(str, values)) or "none"
                raise InvalidRequest(name, "unsupported", expected=expected, found=f"{value!r:.100}")
        if self.response_format == "url" and self.output_format not in (None, "png"):
            raise InvalidRequest("output_format", "only PNG has a url", hint='response_format="b64_json"')
        return {"num_images_per_prompt": self.n or 1, **size_of(self.size)}


class Generation(Options, OpenAIFields):
    """A request of OpenAI's images API; the fields of a `Request` are further ones."""

    model_config = ConfigDict(extra="forbid")

    def request(self) -> Request:
        """Return the request; an `InvalidRequest` says what is wrong."""
        return Request(self.prompt, **{**self.common(), **self.fields()})


class Edit(OpenAIFields):
    """The texts of a form that edits an image; its files are `image` and `mask`."""

    model_config = ConfigDict(extra="forbid")

    strength: float | None = None
    seed: int | None = None
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    guidance_rescale: float | None = None
    noise: str | None = None
    scheduler: str | None = None
    eta: float | None = None
    clip_skip: int | None = Field(None, ge=0)
    negative_prompt: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields that are given, but the images."""
        own = set(Edit.model_fields) - set(OpenAIFields.model_fields)
        return {**self.common(), **self.model_dump(include=own, exclude_none=True)}


def size_of(size: str | None) -> dict[str, Any]:
    """Return the width and height of a size as OpenAI's clients write it; nothing for `auto`."""
    if size in (None, "auto", ""):
        return {}
    width, _, height = str(size).partition("x")
    if not (width.isdecimal() and height.isdecimal()) or len(str(size)) > 20:
        raise InvalidRequest("size", "no size", expected="auto, or WIDTHxHEIGHT such as 512x512", found=f"{size!r:.50}")
    return {"width": int(width), "height": int(height)}
