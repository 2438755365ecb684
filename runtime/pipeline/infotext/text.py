"""Write and read the text that AUTOMATIC1111's web UI puts into its images: prompts, then a line of settings.

The form is that of `modules/infotext_utils.py` of version 1.10. A value with a comma, a colon or a line break in it is
a text of JSON.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ldmrt.runtime import host
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.pipeline.loras.asked import tags_of
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.noise.sources import WEB_UI

from .hires import hires_of
from .samplers import OWN, RESPACED, SAMPLERS

NEGATIVE = "Negative prompt:"
_LABELS = {end: label for label, (end, _) in RESPACED.items()}
# Samplers that AUTOMATIC1111 has too, but does not compute alike: here they have its names alone.
_NAMES = {"dpm2": "DPM2", "dpm2_a": "DPM2 a", "dpmpp_3m_sde": "DPM++ 3M SDE", "pndm": "PLMS"}
_SETTING = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_FEWEST = 3  # settings that a line has to have; with fewer it belongs to the prompt


@dataclass(frozen=True)
class Infotext:
    """Holds what a text says.

    Attributes:
        prompt: The prompt.
        negative: The negative prompt; "" where there is none.
        settings: Values by the web UI's names, in their order.
    """

    prompt: str
    negative: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the text."""
        negative = [f"{NEGATIVE} {self.negative}"] if self.negative else []
        line = ", ".join(f"{name}: {_quoted(value)}" for name, value in self.settings.items())
        return "\n".join([self.prompt, *negative, line])


def read_infotext(text: str) -> Infotext | None:
    """Read a text; None where its last line has no settings, as AUTOMATIC1111 decides it."""
    *lines, last = text.strip().split("\n")
    settings = {name: _unquoted(value) for name, value in _SETTING.findall(last)}
    if len(settings) < _FEWEST:
        return None
    texts: list[list[str]] = [[], []]  # of the prompt, and of the negative prompt
    for line in map(str.strip, lines):
        negative = line.startswith(NEGATIVE)
        place = 1 if negative or texts[1] else 0
        texts[place].append(line.removeprefix(NEGATIVE).strip() if negative else line)
    return Infotext("\n".join(texts[0]), "\n".join(texts[1]), settings)


def names_of(scheduler: str) -> tuple[str, str]:
    """Return AUTOMATIC1111's names of a sampler and of its schedule type, "" for none, by an everyday name.

    A sampler that it does not have keeps its everyday name.
    """
    solver = OWN.get(scheduler, scheduler)
    sampler = next((name for name, one in SAMPLERS.items() if one.scheduler == solver), _NAMES.get(solver, solver))
    return sampler, _LABELS.get(scheduler.removeprefix(solver), "")


def infotext_of(
    request: Request, scheduler: str, guidance: float | None, size: tuple[int, int], seed: int, model: str, digest: str,
    loras: Mapping[str, str] | None = None,
) -> Infotext:  # fmt: skip
    """Return the text of an image of ldmrt.

    Args:
        request: The request of this image alone.
        scheduler: The everyday name of the sampler that drew it; "" where it is not known.
        guidance: The guidance scale; None where it is not known.
        size: Its height and width in pixels.
        seed: Its seed.
        model: The bundle's name.
        digest: A hash of the bundle in hexadecimal digits; "" for none.
        loras: The hashes of the loaded LoRAs' contents, by name.
    """
    sampler, label = names_of(scheduler)
    said: JsonObject = {"Steps": request.num_inference_steps, "Sampler": sampler, "Schedule type": label}
    said |= {"CFG scale": guidance, "Seed": seed, "Size": f"{size[1]}x{size[0]}"}
    said |= {"Model hash": digest[:10], "Model": model}
    said = {name: value for name, value in said.items() if value not in ("", None)}
    if request.variation_seeds:
        said["Variation seed"] = request.variation_seeds[0]
        said["Variation seed strength"] = request.variation_strength
    if request.starts_from_image:
        said["Denoising strength"] = request.strength
    said |= hires_of(request)
    if request.clip_skip and request.clip_skip == request.negative_clip_skip:
        said["Clip skip"] = request.clip_skip + 1
    if request.eta is not None:
        said["Eta"] = request.eta
    if request.noise == WEB_UI:
        said["RNG"] = "NV"
    said |= lora_hashes(request, loras or {})
    said["Version"] = f"ldmrt {host.version_of('ldmrt') or 'unknown'}"
    negative = request.negative_texts(zeros=False)[0][0] or ""
    untagged = {name: weight for name, weight in (request.loras or {}).items() if name not in tags_of(request)}
    prompt = request.prompts[0] + "".join(f" <lora:{name}:{weight:g}>" for name, weight in untagged.items())
    return Infotext(prompt, negative, {name: str(value) for name, value in said.items()})


def lora_hashes(request: Request, loras: Mapping[str, str]) -> dict[str, str]:
    """Return the setting that names the LoRAs of a request, with the hashes of their contents; nothing of none."""
    asked = [*dict.fromkeys([*(request.loras or {}), *tags_of(request)])]
    hashes = [f"{name}: {loras[name][:12]}" for name in asked if name in loras]
    return {"Lora hashes": ", ".join(hashes)} if hashes else {}


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search('^"|[,\n:]', value) else value


def _unquoted(value: str) -> str:
    if not value.startswith('"') or not value.endswith('"'):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value
