"""Say how the prompts of a body are read by a model, and whose noise it draws from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.conditioning.sources import PROMPTS
from ldmrt.runtime.pipeline.prompts.styles import Style, chosen, styled
from ldmrt.runtime.pipeline.prompts.syntaxes import A1111, PLAIN

from .options import NOISE, SKIP, SOURCES

NETWORKS = re.compile(r"<(lora|lyco|hypernet):[^>]*>", re.IGNORECASE)
WEIGHT = re.compile(r"[(\[][^()\[\]]*:\s*[\d.]+\s*[)\]]")  # (a pear:1.2), [a pear:an apple:0.5]


@dataclass(frozen=True)
class Reader:
    """Holds what a caller's options and the model add to a body.

    Attributes:
        syntax: AUTOMATIC1111's where the model takes it, else the plain one, in which weights have no meaning.
        skip: How many of the text encoder's last layers are skipped.
        noise: Whose random numbers a seed stands for.
        styles: The texts that may be put around prompts, by name.
        longest: The most characters of a prompt with its styles.
    """

    syntax: str
    skip: int
    noise: str
    styles: Mapping[str, Style] = field(default_factory=dict)
    longest: int | None = None

    @classmethod
    def of(
        cls, stage: Stage, options: Mapping[str, Any], styles: Mapping[str, Style], longest: int | None = None
    ) -> "Reader":
        """Return it for a model's first stage and the options of a caller."""
        reads = stage.prompt is not None and stage.prompt.kind in PROMPTS
        return cls(A1111 if reads else PLAIN, options[SKIP] - 1, SOURCES[options[NOISE]], styles, longest)

    def fields(self, prompt: str, negative_prompt: str, styles: Sequence[str] = ()) -> dict[str, Any]:
        """Return the fields of a `Request` that follow, with styles of these names around its prompts.

        Raises:
            InvalidRequest: The model reads prompts plainly, and one has a network or a weight; or one is too long.
            LdmrtError: There is no such style.
        """
        added = chosen(self.styles, styles)
        prompt = styled(prompt, [style.prompt for style in added], self.longest)
        negative_prompt = styled(negative_prompt, [style.negative_prompt for style in added], self.longest)
        for text in (prompt, negative_prompt) if self.syntax == PLAIN else ():
            for pattern, problem in ((NETWORKS, "no networks in a prompt"), (WEIGHT, "no weights in a prompt")):
                if found := pattern.search(text):
                    raise InvalidRequest("prompt", problem, expected="plain text", found=f"{found[0]:.50}")
        texts = {"prompt": prompt, "negative_prompt": negative_prompt, "prompt_syntax": self.syntax}
        return {**texts, "clip_skip": self.skip, "negative_clip_skip": self.skip, "noise": self.noise}
