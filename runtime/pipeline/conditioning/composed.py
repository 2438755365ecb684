"""Make the inputs of a network of prompts that a syntax reads: weighted, long, composed and scheduled."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.stages import PROMPT
from ldmrt.runtime.errors import InvalidRequest, LdmrtError, NotFinite
from ldmrt.runtime.pipeline.prompts.reading import Steps
from ldmrt.runtime.pipeline.prompts.syntaxes import Read, read_prompt
from ldmrt.runtime.samplers.guidance import guide
from ldmrt.runtime.samplers.plan import Plan
from ldmrt.runtime.tensors import Array, Arrays
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .composition import Composition, ReadTexts, read_composition
from .context import Context
from .emphasis import States, embed, pooled_ids
from .guided import GuidedInputs
from .prompts import ATTENTION_MASK, POOLED, gives_pooled, state_name, text_encoders
from .sources import PROMPTS, condition

LONG_PROMPTS = "ldmrt export CHECKPOINT BUNDLE --long-prompts"


def composed_inputs(
    context: Context, scales: Sequence[float], usual: Sequence[float], plan: Plan, calls: int
) -> GuidedInputs:
    """Make the inputs of a request whose prompts have a syntax; see `conditioning.inputs.guided_inputs`."""
    request = context.request
    begin = 0 if request.denoising_start is None else plan.first
    composition = read_composition(request, context.stage, context.rows, request.scheduled_steps(calls))
    told = [tuple(part.at(step) for part in composition.parts) for step in range(begin, begin + plan.rows)]
    different = list(dict.fromkeys(told))
    embeddings = _Embeddings(context)
    most = np.zeros(len(composition.weights), np.int64)  # of each image: shorter texts are filled up to it
    for each in different:
        for image, part, texts in zip(composition.image, composition.parts, each, strict=True):
            most[image] = max(most[image], embeddings.tokens(texts, part.skip))
    tokens = most[composition.image]
    _check_tokens(context, tokens)
    inputs = {name: array[composition.block] for name, array in condition(context, without=PROMPTS).items()}
    variants = tuple(inputs | embeddings.inputs(composition, each, tokens) for each in different)
    changes = request.guidance_rescale, request.cfg_normalization
    guidance, own = (composition.guidance(each, *changes) for each in (scales, usual))
    alone = guide(request.total_images, ()) if composition.is_plain else composition.guidance(())
    of_row = tuple(different.index(each) for each in told)
    return GuidedInputs(guidance, own, alone, variants, of_row, tokens if len({*tokens.tolist()}) > 1 else None)


def _check_tokens(context: Context, tokens: NDArray[np.int64]) -> None:
    """Refuse prompts of another length than the network reads, where it reads one alone."""
    network = context.stage.network
    shapes = {spec.name: spec.shape for spec in context.engines[network].inputs}
    fixed = shapes.get(PROMPT, (0, ""))[1]
    if isinstance(fixed, int) and (other := [count for count in tokens.tolist() if count != fixed]):
        problem = "this network reads prompts of one length"
        raise InvalidRequest(network, problem, expected=f"{fixed} tokens", found=max(other), hint=LONG_PROMPTS)


class _Embeddings:
    """Embeds the texts of a request, each once by each text encoder."""

    def __init__(self, context: Context) -> None:
        """Open nothing yet."""
        assert context.stage.prompt is not None
        self.context, self.source = context, context.stage.prompt
        self.names, self.layered = text_encoders(context.engines), gives_pooled(context.stage.prompt)
        syntax = context.request.prompt_syntax
        self.empty = read_prompt(syntax, "", Steps())[0].at(0)
        self.known: dict[tuple[str, Read, int], Array] = {}

    def tokens(self, texts: ReadTexts, skip: int) -> int:
        """Return how many tokens the longest embedding of the texts has."""
        return max(len(self.of(encoder, texts, skip)) for encoder in range(len(self.names)))

    def of(self, encoder: int, texts: ReadTexts, skip: int, tokens: int = 0) -> Array:
        """Return an encoder's embedding of its text, (tokens, width), filled up with that of the empty text."""
        name, text = self.names[encoder], texts[min(encoder, len(texts) - 1)]
        blank = self._embedding(name, self.empty, skip)
        own = np.zeros_like(blank) if text is None else self._embedding(name, text, skip)
        blank = np.zeros_like(blank) if text is None else blank
        return np.concatenate([own, *([blank] * ((tokens - len(own)) // len(blank)))]) if tokens > len(own) else own

    def inputs(self, composition: Composition, told: Sequence[ReadTexts], tokens: NDArray[np.int64]) -> Arrays:
        """Return the inputs that prompts are read for; a call that sees fewer tokens than another ends in zeros."""
        each, pooled = list[Array](), list[Array]()
        for part, texts, count in zip(composition.parts, told, tokens.tolist(), strict=True):
            own = [self.of(encoder, texts, part.skip, count) for encoder in range(len(self.names))]
            each.append(np.pad(np.concatenate(own, axis=-1), ((0, int(tokens.max()) - count), (0, 0))))
            pooled += [self._pooled(texts)] if self.layered else []
        states = np.stack(each)
        if not np.isfinite(states).all():
            raise NotFinite("text_encoder", "the context is not finite", hint="check the weights of the prompt")
        inputs = {"prompt": states} | ({"pooled_prompt": np.stack(pooled)} if pooled else {})
        reads = self.context.stage.reads.items()
        return {name: inputs[source.kind] for name, (source, *_) in reads if source.kind in inputs}

    def _embedding(self, name: str, text: Read, skip: int) -> Array:
        key = name, text, skip
        if key not in self.known:
            self.known[key] = embed(text, self._tokenizer(name), self._states(name, skip))
        return self.known[key]

    def _pooled(self, texts: ReadTexts) -> Array:
        """Return the pooled embedding of the last text encoder that gives one, (width,)."""
        for encoder, name in reversed([*enumerate(self.names)]):
            text = texts[min(encoder, len(texts) - 1)]
            out = self._run(name, pooled_ids(self.empty if text is None else text, self._tokenizer(name)), None)
            if POOLED[0] in out:
                pooled = out[POOLED[0]][0].astype(np.float32, copy=False)
                return np.zeros_like(pooled) if text is None else pooled
        problem = "no encoder gives text_embeds, which this network asks for"
        raise LdmrtError("text_encoder", problem, hint="export again")

    def _states(self, name: str, skip: int) -> States:
        def states(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
            out = self._run(name, ids, mask)
            return out[state_name(name, out, self.layered, skip)].astype(np.float32, copy=False)

        return states

    def _run(self, name: str, ids: NDArray[np.int64], mask: NDArray[np.int64] | None) -> Arrays:
        """Run a text encoder; a mask that hides nothing is left out where the encoder takes none."""
        engine = self.context.engines[name]
        if ATTENTION_MASK in {spec.name for spec in engine.inputs}:
            return engine(input_ids=ids, attention_mask=np.ones_like(ids) if mask is None else mask)
        if mask is not None and not mask.all():
            problem = "this text encoder takes no mask, which weights below 1 ask for"
            raise InvalidRequest(name, problem, expected="weights of 1 or more", hint=LONG_PROMPTS)
        return engine(input_ids=ids)

    def _tokenizer(self, name: str) -> Tokenizer:
        return self.context.tokenizers[name.replace("text_encoder", "tokenizer")]
