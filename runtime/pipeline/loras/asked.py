"""Read the LoRAs that a request asks for, by its field and by the tags of its prompts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ldmrt.runtime.errors import InvalidRequest, Place
from ldmrt.runtime.pipeline.prompts.syntaxes import A1111

from .names import unknown

if TYPE_CHECKING:
    from ldmrt.runtime.pipeline.prompts.a1111.networks import Tag
    from ldmrt.runtime.pipeline.request.fields import Fields

    from .loaded import Loras

OTHERS = ("prompt_2", "prompt_3")


def check_tags(request: "Fields") -> None:
    """Refuse tags in other prompts than the first, and prompts whose tags differ, which are drawn together."""
    if request.prompt_syntax != A1111:
        return
    for name in OTHERS:
        for text in _texts(getattr(request, name)):
            if tags := _split(text)[1]:
                from ldmrt.runtime.pipeline.prompts.fragments import unreadable

                raise unreadable(text, tags[0].at, f"{name} loads no LoRA", expected="it in the prompt")
    tags_of(request)


def tags_of(request: "Fields") -> dict[str, float]:
    """Return the weights of the LoRAs that the prompts name; what is named twice has the sum of both.

    Raises:
        InvalidRequest: The prompts name different ones.
    """
    each = [_weights(text) for text in _texts(request.prompt)] if request.prompt_syntax == A1111 else []
    if any(weights != each[0] for weights in each):
        problem = "prompts of one request ask for different LoRAs"
        raise InvalidRequest("request", problem, expected="the same in all, or a request for each")
    return each[0] if each else {}


def asked(request: "Fields", loras: "Loras") -> dict[str, float]:
    """Return the weights of the LoRAs that a request is drawn with; a prompt's weight replaces any other.

    Raises:
        InvalidRequest: One is not loaded; the error points at its place in the prompt.
    """
    for text in _texts(request.prompt) if request.prompt_syntax == A1111 else ():
        for tag in _split(text)[1]:
            if tag.name not in loras.names:
                raise unknown(tag.name, loras.names, Place(text, tag.at))
    return loras.chosen(request.loras) | tags_of(request)


def without_loras(request: "Fields") -> dict[str, Any]:
    """Return the fields of a request for another model, which has no LoRA: none is asked for, no prompt has a tag."""
    fields: dict[str, Any] = {"loras": {}}
    if request.prompt_syntax == A1111 and request.prompt is not None and tags_of(request):
        plain = [_split(text)[0] for text in _texts(request.prompt)]
        fields["prompt"] = plain[0] if isinstance(request.prompt, str) else plain
    return fields


def _weights(text: str) -> dict[str, float]:
    """Return the weights of the LoRAs that a prompt names."""
    weights: dict[str, float] = {}
    for tag in _split(text)[1]:
        weights[tag.name] = weights.get(tag.name, 0.0) + tag.weight
    return weights


def _texts(value: str | Sequence[str] | None) -> Sequence[str]:
    """Return one text or several as several."""
    return [value] if isinstance(value, str) else value or ()


def _split(text: str) -> "tuple[str, tuple[Tag, ...]]":
    """Split a prompt into its text and its tags, whose expression is compiled where a prompt may have any."""
    from ldmrt.runtime.pipeline.prompts.a1111.networks import split_networks

    return split_networks(text)
