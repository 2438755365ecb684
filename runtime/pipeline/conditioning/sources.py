"""Make the inputs of a network from their sources, by a table with one function for each kind.

A new kind of conditioning is a line here, and one in `KINDS` of `bundle/stages.py`.
"""

import warnings
from collections.abc import Callable, Collection, Mapping

import numpy as np

from ldmrt.runtime.bundle.stages import JOINT, LONG, MASKED_KINDS, TRUE_CFG, Source, Stage
from ldmrt.runtime.errors import InvalidRequest, LdmrtError, LdmrtWarning
from ldmrt.runtime.pipeline.prompts.syntaxes import PLAIN
from ldmrt.runtime.pipeline.request.combinations import no_prompt
from ldmrt.runtime.pipeline.request.request import EMBEDDINGS, TEXTS, Request
from ldmrt.runtime.tensors import Array, Arrays

from .beside import BESIDE
from .context import Context
from .image_prompt import check_image_prompt, image_scales, image_tokens
from .sizes import guidance_embedding, time_ids

PROMPTS = ("prompt", "pooled_prompt")  # the kinds that every prompt syntax is read for
BESIDE_STATE = "beside"  # the channels that the network sees beside the state, which are no input of their own


def condition(context: Context, *, without: Collection[str] = ()) -> Arrays:
    """Make the inputs of a network that do not change from row to row of its sampler.

    Args:
        context: The request and its stage.
        without: Kinds of sources that are left out.

    Returns:
        By name an array with one row for each call of the network: blocks of one row of guidance for every image.
        `BESIDE_STATE` are channels, (calls, C, h, w), that stand beside the state.

    Raises:
        InvalidRequest: The request lacks what a source needs.
    """
    inputs: Arrays = {}
    for name, (source, *_) in context.stage.reads.items():
        if source.kind in SOURCES and source.kind not in without:
            inputs[name] = SOURCES[source.kind](context, source, name)
    if beside := context.stage.beside:
        channels = [(source.kind, BESIDE[source.kind](context, source)) for source in beside]
        rows = [
            np.concatenate([np.zeros_like(array) if kind in row.blank else array for kind, array in channels], axis=1)
            for row in context.rows
        ]
        inputs[BESIDE_STATE] = np.concatenate(rows)
    return inputs


def _prompt(context: Context, source: Source, name: str) -> Array:
    return context.prompts.context


def _pooled_prompt(context: Context, source: Source, name: str) -> Array:
    pooled = context.prompts.pooled
    if pooled is None:
        raise LdmrtError(
            "text_encoder", "no encoder gives text_embeds, which this network asks for", hint="export again"
        )
    return pooled


def _prompt_mask(context: Context, source: Source, name: str) -> Array:
    mask = context.prompts.mask
    assert mask is not None  # as embeddings without one are refused
    return mask


def _sizes(context: Context, source: Source, name: str) -> Array:
    scored, width = bool(source.setting("scored")), context.width(name)
    negative, positive = time_ids(
        context.request, context.request.total_images, context.given.size, width, scored=scored
    )
    return np.concatenate([positive if row.prompt == "positive" else negative for row in context.rows])


def _guidance_scale(context: Context, source: Source, name: str) -> Array:
    return context.repeated(guidance_embedding(context.guidance_scale, context.width(name)))


def _guidance(context: Context, source: Source, name: str) -> Array:
    return context.repeated(np.array([context.guidance_scale], np.float32))


def _kept_layers(context: Context, source: Source, name: str) -> Array:
    each = [np.full(context.request.total_images, source.kind not in row.blank, np.float32) for row in context.rows]
    return np.concatenate(each)


def _class(context: Context, source: Source, name: str) -> Array:
    last, labels = context.stage.classes - 1, context.request.class_of_each
    if labels is None:
        raise InvalidRequest("request", "this model draws classes", expected=f"class_labels, 0 to {last}")
    if outside := [label for label in labels if label > last]:
        raise InvalidRequest("request", "invalid class_labels", expected=f"0 to {last}", found=outside[0])
    each = np.array(labels, np.int64)
    null = np.full_like(each, last + 1)
    return np.concatenate([null if source.kind in row.blank else each for row in context.rows])


def _noise_level(context: Context, source: Source, name: str) -> Array:
    return context.repeated(np.array([context.noise_level], np.int64))


SOURCES: Mapping[str, Callable[[Context, Source, str], Array]] = {
    "prompt": _prompt,
    "pooled_prompt": _pooled_prompt,
    "joint_prompt": _prompt,
    "joint_pooled_prompt": _pooled_prompt,
    "t5_prompt": _prompt,
    "clip_pooled_prompt": _pooled_prompt,
    **dict.fromkeys(MASKED_KINDS, _prompt),
    "prompt_mask": _prompt_mask,
    "sizes": _sizes,
    "guidance_scale": _guidance_scale,
    "guidance": _guidance,
    "kept_layers": _kept_layers,
    "class": _class,
    "noise_level": _noise_level,
    "image_prompt": image_tokens,
    "image_prompt_scale": image_scales,
}


def check_sources(request: Request, stage: Stage, *, warns: bool = False) -> None:
    """Refuse a request without the prompt that a stage reads, or with fields that no source of it takes.

    Args:
        request: The request.
        stage: The stage.
        warns: Also warn of fields that have no effect: a request is checked before it is drawn too.

    Raises:
        InvalidRequest: Names the field, which would have no effect, or which is missing.
    """
    if stage.prompt is None:
        for name in (*TEXTS, *EMBEDDINGS):
            given = getattr(request, name)
            if given is not None and (name in EMBEDDINGS or any(given)):  # "" asks for nothing
                raise InvalidRequest("request", f"this model takes no {name}", expected=f"a request without {name}")
    elif request.prompt is None and request.prompt_embeds is None:
        raise no_prompt()
    if stage.prompt is None or stage.prompt.kind != JOINT:
        for name in ("prompt_3", "negative_prompt_3"):
            if getattr(request, name) is not None:
                raise InvalidRequest("request", f"this model takes no {name}", expected=f"a request without {name}")
    if stage.prompt is not None and stage.prompt.kind in (LONG, *MASKED_KINDS) and request.clip_skip:
        raise InvalidRequest("request", "this model takes no clip_skip", expected="a request without clip_skip")
    if request.prompt_syntax != PLAIN and stage.prompt is not None and stage.prompt.kind not in PROMPTS:
        raise InvalidRequest("request", "this model takes no prompt_syntax", expected="a request without prompt_syntax")
    taken = {*stage.guide.scales, *(source.kind for sources in stage.reads.values() for source in sources)}
    if request.true_cfg_scale != 1 and TRUE_CFG not in stage.guide.scales:
        hint = "export again" if stage.prompt is not None and stage.prompt.kind == LONG and not stage.beside else None
        problem, expected = f"this model takes no {TRUE_CFG}", f"a request without {TRUE_CFG}"
        raise InvalidRequest("request", problem, expected=expected, hint=hint)
    if warns and request.true_cfg_scale != 1 and not request.has_negative:
        _warn(f"{TRUE_CFG} has no effect without negative_prompt")
    if request.skip_guidance_layers is not None:
        _check_skipped({*request.skip_guidance_layers}, stage)
        if warns and not request.scales(stage.guide.scales, stage.guidance_scale):
            _warn("skip_guidance_layers has no effect without a guidance_scale above 1")
    check_image_prompt(request, stage)
    masks = dict.fromkeys(EMBEDDINGS[4:], "prompt_mask")
    kinds = {"class_labels": "class", "noise_level": "noise_level", "image_guidance_scale": "", **masks}
    for name, kind in kinds.items():
        if getattr(request, name) is not None and not {name, kind} & taken:
            raise InvalidRequest("request", f"this model takes no {name}", expected=f"a request without {name}")


def _warn(problem: str) -> None:
    """Warn of a field that has no effect."""
    warnings.warn(f"request: {problem}", LdmrtWarning, stacklevel=4)


def _check_skipped(layers: set[int], stage: Stage) -> None:
    """Refuse layers that the network cannot skip."""
    if layers == {*stage.skipped_layers}:
        return
    wanted = ",".join(map(str, sorted(layers)))
    hint = f"ldmrt export CHECKPOINT BUNDLE --skip-layers {wanted}"
    if stage.skipped_layers:
        expected = ",".join(map(str, stage.skipped_layers))
        raise InvalidRequest("request", "this network skips other layers", expected=expected, found=wanted, hint=hint)
    problem, expected = "this model takes no skip_guidance_layers", "a request without skip_guidance_layers"
    able = stage.prompt is not None and stage.prompt.kind == JOINT
    raise InvalidRequest("request", problem, expected=expected, hint=hint if able else None)
