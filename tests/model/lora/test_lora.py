"""LoRA files in every spelling against diffusers and PEFT, weight by weight."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers

from ldmrt.model import load
from ldmrt.model.lora.merge import merge, read_lora
from ldmrt.runtime.errors import LdmrtWarning
from ldmrt.runtime.files.reading import sha256

from ...support.loras import (
    ATTENTION,
    OTHER,
    TEXT,
    State,
    adapter,
    assert_same,
    fused,
    kohya,
    only_unet,
    ours,
    pipeline,
    rename,
    save,
    tiny_factors,
    weights,
    whole,
)


@pytest.fixture(scope="module")
def factors(checkpoint: Path) -> State:
    return tiny_factors(checkpoint)


def attention(state: State) -> State:
    return {key: value for key, value in state.items() if ".attn" in key or ".self_attn" in key}


def processors(state: State) -> State:
    """Names of early 2023: the attention processors own the factors."""
    text = rename(state, (r"\.q_proj\.", ".to_q."), (r"\.k_proj\.", ".to_k."), (r"\.v_proj\.", ".to_v."),
                  (r"\.out_proj\.", ".to_out."), (r"^text_encoder\.", "text_encoder.text_model."))  # fmt: skip
    return rename(text, (r"\.(to_\w+)(\.0)?\.lora_A", r".processor.\1_lora.down"),
                  (r"\.(to_\w+)(\.0)?\.lora_B", r".processor.\1_lora.up"))  # fmt: skip


# What the file holds, how it is spelt, and whether diffusers reads that; if not, it reads the same in PEFT's names.
SPELLINGS: dict[str, tuple[Callable[[State], State], Callable[[State], State], bool]] = {
    "PEFT in diffusers": (whole, whole, True),
    "PEFT with an adapter's name": (whole, lambda s: rename(s, (r"(lora_[AB])\.", r"\1.default.")), False),
    "PEFT, the pipeline whole": (whole, lambda s: rename(s, (r"^(\w+)\.", r"\1.base_model.model.")), False),
    "PEFT, the U-Net alone": (only_unet, lambda s: rename(s, (r"^unet\.", "base_model.model.")), False),
    "PEFT, the text encoder alone": (
        lambda s: {key: value for key, value in s.items() if key.startswith("text_encoder.")},
        lambda s: rename(s, (r"^text_encoder\.", "base_model.model.text_model.")), False,
    ),
    "diffusers": (attention, convert_state_dict_to_diffusers, True),
    "diffusers, old": (attention, processors, True),
    "diffusers, oldest": (lambda s: only_unet(attention(s)), lambda s: rename(processors(s), (r"^unet\.", "")), False),
    "kohya": (whole, kohya, True),
    "kohya, one text encoder": (whole, lambda s: rename(kohya(s), ("lora_te1_", "lora_te_text_model_")), True),
    "kohya, half precision": (
        lambda s: {key: value.half().float() for key, value in s.items()},
        lambda s: {key: value.half() for key, value in kohya(s).items()}, False,
    ),
    "kohya, 1x1 as a matrix": (
        whole, lambda s: {k: v[:, :, 0, 0] if "_proj_" in k and v.ndim == 4 else v for k, v in kohya(s).items()}, False,
    ),
    "kohya, a matrix as 1x1": (
        whole, lambda s: {k: v[:, :, None, None] if v.ndim == 2 else v for k, v in kohya(s).items()}, False,
    ),
}  # fmt: skip


@pytest.mark.slow(minutes=0.18)
@pytest.mark.parametrize("name", list(SPELLINGS))
@pytest.mark.filterwarnings("ignore:lora.* alpha is taken to be the rank")
def test_every_spelling_adds_the_same(name: str, factors: State, checkpoint: Path, tmp_path: Path) -> None:
    content, spell, readable = SPELLINGS[name]
    networks = ours(checkpoint)
    before = weights(networks)
    plain = save(content(factors), tmp_path / "plain.safetensors")
    file = save(spell(content(factors)), tmp_path / "file.safetensors")
    merged = merge(networks, [(read_lora(file), 0.8)])
    changed = assert_same(weights(networks), fused(pipeline(checkpoint), [(file if readable else plain, 0.8)]), before)
    assert len(changed) == len(content(factors)) // 2
    assert sum(merged["loras"][0]["layers"].values()) == len(changed)


def test_file_of_save_lora_weights(checkpoint: Path, tmp_path: Path) -> None:
    """It keeps alpha and its exceptions in the file's notes."""
    torch.manual_seed(8)
    trained = pipeline(checkpoint)
    exceptions = {"rank_pattern": {"proj_in": 2}, "alpha_pattern": {"proj": 9, "attn1.to_q": 1.5, "net.2": 7}}
    unet = adapter(trained.unet, ATTENTION + OTHER, 4, lora_alpha=6, **exceptions)
    text = adapter(trained.text_encoder, TEXT, 4, lora_alpha=3, use_rslora=True)
    notes = _collate_lora_metadata({"unet": trained.unet, "text_encoder": trained.text_encoder})
    trained.save_lora_weights(tmp_path, unet, text, **notes)
    file, networks = tmp_path / "pytorch_lora_weights.safetensors", ours(checkpoint)
    before = weights(networks)
    merge(networks, [(read_lora(file), 1.0)])
    changed = assert_same(weights(networks), fused(pipeline(checkpoint), [(file, 1.0)]), before)
    assert len(changed) == (len(unet) + len(text)) // 2


def test_file_of_peft_has_its_alpha_beside_it(checkpoint: Path, factors: State, tmp_path: Path) -> None:
    ours, twice = load(checkpoint).unet, load(checkpoint).unet
    state = SPELLINGS["PEFT, the U-Net alone"][1](only_unet(factors))
    file = save(state, tmp_path / "adapter_model.safetensors")
    with pytest.warns(LdmrtWarning, match="no alpha and no adapter_config.json"):
        merge({"unet": twice}, [(read_lora(file), 2.0)])
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    merge({"unet": ours}, [(read_lora(file), 1.0)])
    assert all(torch.equal(value, twice.state_dict()[key]) for key, value in ours.state_dict().items())


def test_several_files_and_alphas_and_weights(checkpoint: Path, factors: State, tmp_path: Path) -> None:
    torch.manual_seed(9)
    other = {key: torch.randn_like(value) * 0.1 for key, value in factors.items()}
    # diffusers 0.42 loses an alpha of its own in attention and in the text encoder: one for all of these
    alphas = {"lora_unet_": 2.0, "ff_net_2": 5.0, "conv1": 0.5, "lora_te1_": 3.0}
    files = [
        (save(kohya(factors, alphas), tmp_path / "a.safetensors"), 0.7),
        (save(other, tmp_path / "b.safetensors"), -0.3),
    ]
    networks = ours(checkpoint)
    before = weights(networks)
    merged = merge(networks, [(read_lora(path), weight) for path, weight in files])
    changed = assert_same(weights(networks), fused(pipeline(checkpoint), files), before)
    assert len(changed) == len(factors) // 2
    text = sum(key.startswith("text_encoder.") for key in factors) // 2
    layers = {"unet": len(changed) - text, "text_encoder": text}
    assert merged == {
        "loras": [{"file": p.name, "sha256": sha256(p), "weight": weight, "layers": layers} for p, weight in files]
    }


def test_alpha_of_every_layer(checkpoint: Path, factors: State, tmp_path: Path) -> None:
    """By hand, since diffusers loses some."""
    state = kohya(factors)
    generator = torch.Generator().manual_seed(1)
    for key in state:
        if key.endswith(".alpha"):
            state[key] = torch.rand((), generator=generator) * 8
    networks = ours(checkpoint)
    before = weights(networks)
    merge(networks, [(read_lora(save(state, tmp_path / "a.safetensors")), -1.5)])
    seen = 0
    for key, value in weights(networks).items():
        name = key.removesuffix(".weight")
        flat = name.replace(".", "_").replace("unet_", "lora_unet_", 1).replace("text_encoder_", "lora_te1_", 1)
        if (down := factors.get(f"{name}.lora_A.weight")) is None:
            assert torch.equal(value, before[key])
            continue
        product = (factors[f"{name}.lora_B.weight"].flatten(1) @ down.flatten(1)).reshape(value.shape)
        expected = before[key] - 1.5 * state[f"{flat}.alpha"] / 4 * product
        # float32: a sum of 4 products, and one more
        assert (value - expected).abs().max() <= 1e-6 * expected.abs().max()
        seen += 1
    assert seen == len(factors) // 2


def test_tucker_form_is_three_convolutions(checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(10)
    down, mid, up = torch.randn(3, 16, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(16, 3, 1, 1)
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    state = {f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": mid, f"{name}.lora_up.weight": up,
             f"{name}.alpha": torch.tensor(1.5)}  # fmt: skip
    unet = load(checkpoint).unet
    convolution = unet.get_submodule("down_blocks.0.resnets.0.conv1")
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        added = F.conv2d(F.conv2d(F.conv2d(x, down), mid, padding=1), up) * 0.5
        expected = convolution(x) + 0.6 * added
        merge({"unet": unet}, [(read_lora(save(state, tmp_path / "a.safetensors")), 0.6)])
        # float32: sums of up to 16 * 9 products in another order
        assert (convolution(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert added.abs().max() > 1
