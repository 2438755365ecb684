"""What the tests of transformers' LoRAs share: networks of both families, ours and diffusers', with equal weights."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn
from transformers import T5Config, T5EncoderModel

from ldmrt.model.library.flux import flux
from ldmrt.model.library.stable_diffusion_3 import stable_diffusion_3

from ....support.families.flux import FLUX
from ....support.families.stable_diffusion import _TEXTG, _text
from ....support.families.stable_diffusion_3 import SD3, T5
from ....support.loras import TEXT, State, adapter, parts
from ....support.pipelines import _text_encoder, randomise

FAMILIES = ["flux", "sd3"]


@cache
def _networks(family: str) -> dict[str, Any]:
    """diffusers' and transformers' networks with random weights."""
    torch.manual_seed(5)
    t5 = T5EncoderModel(T5Config(**T5, vocab_size=20))
    made: dict[str, Any]
    if family == "flux":
        text = _text_encoder(_text(32, "quick_gelu"), "CLIPTextModel")
        made = {"transformer": FluxTransformer2DModel(**FLUX["dev"][1]), "text_encoder": text, "text_encoder_2": t5}
    else:
        texts = [_text_encoder(config, "CLIPTextModelWithProjection") for config in (_text(24, "quick_gelu"), _TEXTG)]
        made = {"transformer": SD3Transformer2DModel(**SD3["sd35-medium"][0]), "text_encoder": texts[0],
                "text_encoder_2": texts[1], "text_encoder_3": t5}  # fmt: skip
    return {name: randomise(network, seed) for seed, (name, network) in enumerate(made.items())}


def ours(family: str) -> dict[str, nn.Module]:
    """The networks as a checkpoint has them, which a LoRA is merged into."""
    networks = deepcopy(_networks(family))
    theirs = networks["transformer"]
    transformer = (flux if family == "flux" else stable_diffusion_3)(dict(theirs.config))
    transformer.load_state_dict(theirs.state_dict())
    return {**networks, "transformer": transformer}


def theirs(family: str) -> Any:
    """diffusers' pipeline of the same networks, without a T5, which it loads no LoRA into."""
    networks = {"vae": None, "scheduler": None, **deepcopy(_networks(family))}
    networks |= {f"tokenizer{number}": None for number in ("", "_2", *(["_3"] if family == "sd3" else []))}
    return (FluxPipeline if family == "flux" else StableDiffusion3Pipeline)(**networks)


def layers_of(network: nn.Module) -> list[str]:
    """The matrices and convolutions of a network."""
    return [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


@pytest.fixture(scope="session")
def factors_of() -> Callable[[str], State]:
    """Rank 4 for every matrix of a family's transformer and of its CLIPs, in PEFT's names."""

    @cache
    def made(family: str) -> State:
        torch.manual_seed(7)
        state: State = {}
        for name, network in parts(theirs(family)).items():
            targets = layers_of(network) if name == "transformer" else TEXT
            state |= {f"{name}.{key}": value for key, value in adapter(network, targets, 4).items()}
        return state

    return made
