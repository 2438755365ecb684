"""Refuse fields of a request that exclude one another, that need another, or that do not fit together."""

from collections.abc import Sequence

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.images.reading import split
from ldmrt.runtime.pipeline.prompts.reading import Steps
from ldmrt.runtime.pipeline.prompts.syntaxes import PLAIN, read_prompt

from .checks import exclusive, invalid, needs
from .fields import Fields

SKIPPING = (
    "skip_guidance_layers", "skip_layer_guidance_scale", "skip_layer_guidance_start", "skip_layer_guidance_stop",
)  # fmt: skip


def check_combinations(request: Fields) -> None:
    """Refuse fields that exclude one another, or that need another."""
    if request.full_every > 1 and request.controls:
        raise exclusive("deep_cache", "controls")
    if request.skip_guidance_layers is None:
        for name in SKIPPING[1:]:
            if getattr(request, name) != getattr(Fields, name):
                raise needs(name, "skip_guidance_layers")
    if request.mask_image is not None and request.image is None:
        raise needs("mask_image", "image")
    if request.mask_from is not None and request.mask_image is None:
        raise needs("mask_from", "mask_image")
    if request.mask_content != "original" and not request.has_mask:
        raise needs("mask_content", "mask_image")
    if request.padding_mask_crop is not None:
        _check_crop(request)
    if request.variation_seed is None and request.variation_strength:
        raise needs("variation_strength", "variation_seed")
    if request.variation_seed is not None and request.latents is not None:
        raise exclusive("variation_seed", "latents", "which are the noise")
    _check_outpainting(request)
    check_second_pass(request)
    if isinstance(request.class_labels, list) and len(request.class_labels) != request.prompt_count:
        raise wrong_number("class_labels", request.prompt_count, len(request.class_labels))
    if request.denoising_start is None:
        return
    if request.latents is None:
        raise needs("denoising_start", "latents, which another request left at its denoising_end")
    if request.image is not None and not request.has_mask:
        raise exclusive("denoising_start", "image", "which the latents already hold")
    if request.denoising_end is not None and request.denoising_start >= request.denoising_end:
        raise invalid("denoising_start", f"below denoising_end, {request.denoising_end:g}", request.denoising_start)


def _check_crop(request: Fields) -> None:
    """Refuse a region around a mask where there is none, or several."""
    if not request.has_mask:
        raise needs("padding_mask_crop", "mask_image")
    if request.controls:
        raise exclusive("padding_mask_crop", "controls", "which are of the whole image")
    _check_one_image(request, "padding_mask_crop")


def _check_outpainting(request: Fields) -> None:
    """Refuse to draw around no image, or around several, or what is of another size than the larger canvas."""
    if request.outpaint is None:
        if request.feather != Fields.feather:
            raise needs("feather", "outpaint")
        return
    if not any(request.outpaint):
        raise invalid("outpaint", "at least a side above 0", request.outpaint)
    if request.image is None:
        raise needs("outpaint", "image")
    for name in ("mask_image", "denoising_start", "denoising_end"):
        if getattr(request, name) is not None:
            raise exclusive("outpaint", name)
    for name in ("width", "height"):
        if getattr(request, name) is not None and request.padding_mask_crop is None:
            raise exclusive("outpaint", name, "as the image keeps its pixels")
    _check_one_image(request, "outpaint")


def _check_one_image(request: Fields, by: str) -> None:
    """Refuse several images, or masks, where a field takes one."""
    for name in ("image", "mask_image"):
        images = getattr(request, name)
        if images is not None and (count := len(split(name, images))) > 1:
            problem = f"{by} takes one {name}"
            raise InvalidRequest("request", problem, expected="a request for each image", found=count)


def check_second_pass(request: Fields) -> None:
    """Refuse a second pass of what has none, and the latents of an image beside what stands in their place."""
    if request.hires is None:
        for name in ("hires_strength", "hires_steps", "hires_upscaler"):
            if getattr(request, name) != getattr(Fields, name):
                raise needs(name, "hires")
    else:
        for name in ("mask_image", "outpaint", "denoising_start", "denoising_end"):
            if getattr(request, name) is not None:
                raise exclusive("hires", name)
    if request.image_latents is not None:
        for name in ("image", "denoising_start"):
            if getattr(request, name) is not None:
                raise exclusive("image_latents", name)
        if len(request.image_latents) != request.total_images:
            problem, expected = "wrong length of image_latents", f"{request.total_images} (one per image)"
            raise InvalidRequest("request", problem, expected=expected, found=len(request.image_latents))


def check_embeddings(request: Fields) -> None:
    """Refuse embeddings beside the texts that they stand for, and those that lack or contradict another."""
    for side in ("", "negative_"):
        embeddings = f"{side}prompt_embeds"
        others = (f"{side}pooled_prompt_embeds", f"{side}prompt_attention_mask")
        if getattr(request, embeddings) is None:
            for name in others:
                if getattr(request, name) is not None:
                    raise needs(name, embeddings)
            continue
        for text in (f"{side}prompt", f"{side}prompt_2", f"{side}prompt_3"):
            if getattr(request, text) is not None:
                raise exclusive(text, embeddings)
        for name in (embeddings, *others):
            array = getattr(request, name)
            if array is not None and len(array) != request.prompt_count:
                raise wrong_number(name, request.prompt_count, len(array))
        mask, tokens = getattr(request, others[1]), getattr(request, embeddings).shape[1]
        if mask is not None and mask.shape[1] != tokens:
            expected = f"one number for each of {tokens} tokens"
            raise InvalidRequest("request", f"wrong shape of {others[1]}", expected=expected, found=mask.shape)
    positive, negative = request.prompt_embeds, request.negative_prompt_embeds
    if positive is not None and negative is not None and positive.shape != negative.shape:
        problem, expected = "wrong shape of negative_prompt_embeds", f"that of prompt_embeds, {positive.shape}"
        raise InvalidRequest("request", problem, expected=expected, found=negative.shape)


def check_prompts(request: Fields, texts: Sequence[str]) -> None:
    """Refuse prompts that their syntax cannot read, and embeddings, which no syntax reads.

    Args:
        request: The request.
        texts: The names of the fields that hold prompts.
    """
    if request.prompt_syntax == PLAIN:
        return
    if request.prompt_embeds is not None or request.negative_prompt_embeds is not None:
        raise exclusive("prompt_syntax", "prompt embeddings")
    for name in texts:
        given = getattr(request, name) or ()
        for text in (given,) if isinstance(given, str) else given:
            _check_prompt(request.prompt_syntax, name, text)


def _check_prompt(syntax: str, name: str, text: str) -> None:
    """Refuse a prompt that its syntax cannot read, by the name of its field."""
    try:
        read_prompt(syntax, text, Steps(), negative=name.startswith("negative"))
    except InvalidRequest as error:
        raise error.about(name) from None


def wrong_number(name: str, prompts: int, found: int) -> InvalidRequest:
    """Make the error of a field that holds not one value for each prompt."""
    expected = f"{prompts} (one per prompt)"
    return InvalidRequest("request", f"wrong length of {name}", expected=expected, found=found)


def no_prompt() -> InvalidRequest:
    """Make the error of a request without a prompt."""
    return InvalidRequest("request", "no prompt", expected="prompt, or prompt_embeds")
