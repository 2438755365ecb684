"""LoRA files in every spelling against diffusers and PEFT, weight by weight, and every damage as one error."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldmrt.model import UNet, UNetConfig, load
from ldmrt.model.config import to_config
from ldmrt.model.lora import Lora, ldm_modules, merge, read_lora
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.errors import LdmrtWarning
from ldmrt.runtime.files import sha256

State = dict[str, Tensor]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
OTHER = ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj"]
CONVOLUTIONS = ["conv_in", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def adapter(network: Any, targets: list[str], rank: int, **more: Any) -> State:
    """Random factors, none zero, for these modules of one of diffusers' networks."""
    network.add_adapter(LoraConfig(r=rank, target_modules=targets, init_lora_weights=False, **more))
    state = {key: value.detach().clone() for key, value in get_peft_model_state_dict(network).items()}
    return {key: torch.randn_like(value) * 0.2 for key, value in state.items()}


def pipeline(checkpoint: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)


def parts(theirs: Any) -> dict[str, nn.Module]:
    return {name: getattr(theirs, name) for name in ("unet", "text_encoder", "text_encoder_2") if hasattr(theirs, name)}


def ours(checkpoint: Path) -> dict[str, nn.Module]:
    """What a LoRA is merged into."""
    networks = load(checkpoint).networks
    return {name: networks[name] for name in ("unet", "text_encoder")}


def weights(networks: dict[str, nn.Module]) -> State:
    """Every weight by its name, copied."""
    return {
        f"{c}.{key}": v.detach().clone() for c, network in networks.items() for key, v in network.state_dict().items()
    }


def fused(theirs: Any, files: Iterable[tuple[Path, float]]) -> State:
    """The weights as diffusers fuses them."""
    names = []
    for i, (path, _) in enumerate(files):
        theirs.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"a{i}")
        names.append(f"a{i}")
    theirs.set_adapters(names, [weight for _, weight in files])
    theirs.fuse_lora(components=list(parts(theirs)), adapter_names=names)
    theirs.unload_lora_weights()
    return weights(parts(theirs))


def assert_same(found: State, expected: State, before: State) -> set[str]:
    """Equal weights; returns which of them changed."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # float32: a sum of up to 8 products, and up to 3 sums in another order
        assert (found[key] - value).abs().max() <= 1e-6 * value.abs().max(), key
    return {key for key, value in found.items() if (value - before[key]).abs().max() > 1e-3}


def kohya(state: State, alphas: dict[str, float] | None = None) -> State:
    """The names that kohya's scripts give to PEFT's; `alphas` by a part of the name, the rank where none is given."""
    renamed = convert_state_dict_to_kohya(state)
    for part, alpha in (alphas or {}).items():
        for key in renamed:
            if key.endswith(".alpha") and part in key:
                renamed[key] = torch.tensor(alpha)
    return renamed


def save(state: State, path: Path, **notes: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata=notes or None)
    return path


@pytest.fixture(scope="module")
def factors(checkpoint: Path) -> State:
    """Rank 4 for nearly every matrix and convolution of the tiny checkpoint, in PEFT's names."""
    torch.manual_seed(7)
    theirs = pipeline(checkpoint)
    unet = adapter(theirs.unet, ATTENTION + OTHER + CONVOLUTIONS, 4)
    text = adapter(theirs.text_encoder, TEXT, 4)
    return {f"unet.{k}": v for k, v in unet.items()} | {f"text_encoder.{k}": v for k, v in text.items()}


def attention(state: State) -> State:
    return {key: value for key, value in state.items() if ".attn" in key or ".self_attn" in key}


def rename(state: State, *names: tuple[str, str]) -> State:
    for pattern, new in names:
        state = {re.sub(pattern, new, key): value for key, value in state.items()}
    return state


def processors(state: State) -> State:
    """Names of early 2023: the attention processors own the factors."""
    text = rename(state, (r"\.q_proj\.", ".to_q."), (r"\.k_proj\.", ".to_k."), (r"\.v_proj\.", ".to_v."),
                  (r"\.out_proj\.", ".to_out."), (r"^text_encoder\.", "text_encoder.text_model."))  # fmt: skip
    return rename(text, (r"\.(to_\w+)(\.0)?\.lora_A", r".processor.\1_lora.down"),
                  (r"\.(to_\w+)(\.0)?\.lora_B", r".processor.\1_lora.up"))  # fmt: skip


def only_unet(state: State) -> State:
    return {key: value for key, value in state.items() if key.startswith("unet.")}


def whole(state: State) -> State:
    return state


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


CLIP = {"vocab_size": 100, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 16}  # fmt: skip
XL = UNetConfig(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(8, 16, 16),
    transformer_layers_per_block=(1, 1, 2),
    norm_num_groups=4,
    cross_attention_dim=56,
    attention_head_dim=2,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=44,
)


def xl() -> tuple[dict[str, nn.Module], Any]:
    """A tiny U-Net of XL's levels with two text encoders, and diffusers' pipeline of the same weights."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(11)
    unet = UNet(XL)
    theirs = UNet2DConditionModel.from_config(to_config("UNet2DConditionModel", XL))
    theirs.load_state_dict(unet.state_dict())
    widths: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 4}
    texts = (
        CLIPTextModel(CLIPTextConfig(**CLIP)),
        CLIPTextModelWithProjection(CLIPTextConfig(**CLIP | {"hidden_size": 32, "projection_dim": 20})),
    )
    copies = type(texts[0])(texts[0].config), type(texts[1])(texts[1].config)
    for text, copy in zip(texts, copies, strict=True):
        copy.load_state_dict(text.state_dict())
    vae = AutoencoderKL(3, 3, ("DownEncoderBlock2D",), ("UpDecoderBlock2D",), **widths)
    pipeline = StableDiffusionXLPipeline(vae, *copies, None, None, theirs, DDIMScheduler())
    return {"unet": unet, "text_encoder": texts[0], "text_encoder_2": texts[1]}, pipeline


@pytest.fixture(scope="module")
def xl_factors() -> State:
    """Rank 2, in PEFT's names, for the same."""
    targets = {"unet": [*ATTENTION, *OTHER, *CONVOLUTIONS, "linear_1"], "text_encoder": TEXT,
               "text_encoder_2": [*TEXT, "text_projection"]}  # fmt: skip
    state: State = {}
    for name, network in parts(xl()[1]).items():
        state |= {f"{name}.{key}": value for key, value in adapter(network, targets[name], 2).items()}
    return state


def original(state: State) -> State:
    """kohya's names for XL, which are the original code's; the renaming is written out, and diffusers reads it."""
    blocks = {"down_blocks_0_resnets_0": "input_blocks_1_0", "down_blocks_0_resnets_1": "input_blocks_2_0",
              "down_blocks_0_downsamplers_0_conv": "input_blocks_3_0_op", "down_blocks_1_resnets_0": "input_blocks_4_0",
              "down_blocks_1_attentions_0": "input_blocks_4_1", "down_blocks_1_resnets_1": "input_blocks_5_0",
              "down_blocks_1_attentions_1": "input_blocks_5_1",
              "down_blocks_1_downsamplers_0_conv": "input_blocks_6_0_op",
              "down_blocks_2_resnets_0": "input_blocks_7_0", "down_blocks_2_attentions_0": "input_blocks_7_1",
              "down_blocks_2_resnets_1": "input_blocks_8_0", "down_blocks_2_attentions_1": "input_blocks_8_1",
              "mid_block_resnets_0": "middle_block_0", "mid_block_attentions_0": "middle_block_1",
              "mid_block_resnets_1": "middle_block_2"}  # fmt: skip
    for block in range(9):
        for part, number in (("resnets", 0), ("attentions", 1)):
            blocks[f"up_blocks_{block // 3}_{part}_{block % 3}"] = f"output_blocks_{block}_{number}"
    blocks |= {f"up_blocks_{level}_upsamplers_0": f"output_blocks_{3 * level + 2}_2" for level in (0, 1)}
    inside = {"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
              "conv_shortcut": "skip_connection"}  # fmt: skip
    return rename(
        state,
        *((rf"^lora_unet_{ours}(?=[_.])", f"lora_unet_{theirs}") for ours, theirs in blocks.items()),
        *((rf"(_blocks?_\d+(?:_0)?)_{ours}\.", rf"\1_{theirs}.") for ours, theirs in inside.items()),
        (r"_unet_conv_in\.", "_unet_input_blocks_0_0."),
        (r"_unet_time_embedding_linear_1\.", "_unet_time_embed_0."),
        (r"_unet_add_embedding_linear_1\.", "_unet_label_emb_0_0."),
    )


def without_sizes(state: State) -> State:
    """diffusers 0.42 reads a LoRA of add_embedding under its original name and PEFT's, but loses it under its own."""
    return {key: value for key, value in state.items() if "add_embedding" not in key}


@pytest.mark.parametrize(
    ("content", "spell"),
    [(whole, whole), (without_sizes, kohya), (whole, lambda state: original(kohya(state)))],
    ids=["PEFT", "kohya", "original"],
)
def test_xl_with_two_text_encoders(
    content: Callable[[State], State], spell: Callable[[State], State], xl_factors: State, tmp_path: Path
) -> None:
    networks, theirs = xl()
    before = weights(networks)
    file = save(spell(content(xl_factors)), tmp_path / "xl.safetensors")
    expected = fused(theirs, [(file, 0.9)])
    merged = merge(networks, [(read_lora(file), 0.9)])
    changed = assert_same(weights(networks), expected, before)
    assert len(changed) == len(content(xl_factors)) // 2
    assert {key.split(".")[0] for key in changed} == set(merged["loras"][0]["layers"]) == set(networks)


LEVELS = {
    "1.5": UNetConfig(cross_attention_dim=768),
    "XL": UNetConfig(
        down_block_types=XL.down_block_types, up_block_types=XL.up_block_types, block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
    ),
    "one layer, five levels": UNetConfig(
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3, "DownBlock2D"), layers_per_block=1,
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3, "UpBlock2D"), block_out_channels=(32,) * 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LEVELS))
def test_original_names_are_those_that_diffusers_converts(name: str) -> None:
    config = LEVELS[name]
    with torch.device("meta"):
        wanted = UNet(config).state_dict()
    names = ldm_modules(config)
    renamed = {}
    for key in wanted:
        (entry,) = (module for module in names if key.startswith(f"{module}."))
        renamed[names[entry] + key.removeprefix(entry)] = key
    assert len(renamed) == len(wanted)
    plain = {**to_config("UNet2DConditionModel", config), "class_embed_type": None, "addition_embed_type": None}
    converted = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{key}": value for key, value in renamed.items()}, plain
    )
    assert converted == {key: key for key in wanted}


def test_original_name_of_an_upsampler() -> None:
    """It follows a block's attention where there is one; diffusers finds it in either place. From the hub's files."""
    names = {key: ldm_modules(config) for key, config in LEVELS.items()}
    assert names["1.5"]["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.1.conv"
    assert names["1.5"]["up_blocks.1.upsamplers.0.conv"] == "output_blocks.5.2.conv"
    assert names["XL"]["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.2.conv"


def test_original_names_in_a_file_of_another_family(checkpoint: Path, factors: State, tmp_path: Path) -> None:
    """Also where diffusers reads none: a 1.x network, dotted as ComfyUI has it and underscored."""
    unet = load(checkpoint).unet
    names = {f"unet.{ours}": theirs for ours, theirs in ldm_modules(unet.config).items()}
    merges = []
    for spell in (lambda name: f"diffusion_model.{name}", lambda name: "lora_unet_" + name.replace(".", "_")):
        state = {}
        for key, value in only_unet(factors).items():
            module, part = key.split(".lora_")
            (entry,) = (name for name in names if f"{module}.".startswith(f"{name}."))
            spelt = spell(names[entry] + module.removeprefix(entry))
            state[f"{spelt}.lora_{'down' if part[0] == 'A' else 'up'}.weight"] = value
        merges.append(load(checkpoint).unet)
        merge({"unet": merges[-1]}, [(read_lora(save(state, tmp_path / "a.safetensors")), 1.0)])
    merge({"unet": unet}, [(read_lora(save(only_unet(factors), tmp_path / "b.safetensors")), 1.0)])
    for other in merges:
        assert all(torch.equal(value, unet.state_dict()[key]) for key, value in other.state_dict().items())


LAYER = "lora_unet_conv_in"
GOOD = {f"{LAYER}.lora_down.weight": torch.ones(2, 4, 3, 3), f"{LAYER}.lora_up.weight": torch.ones(16, 2, 1, 1)}
TO_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def pair(name: str, down: tuple[int, ...], up: tuple[int, ...]) -> State:
    return {f"{name}.lora_down.weight": torch.ones(down), f"{name}.lora_up.weight": torch.ones(up)}


REFUSED: dict[str, tuple[State, str]] = {
    "LoHa": ({f"{LAYER}.hada_w1_a": torch.ones(2)}, "is a LoHa file, not LoRA"),
    "LoKr": ({f"{LAYER}.lokr_w1": torch.ones(2)}, "is a LoKr file, not LoRA"),
    "DoRA of kohya": (GOOD | {f"{LAYER}.dora_scale": torch.ones(16)}, "is a DoRA file, not LoRA"),
    "DoRA of PEFT": (GOOD | {"unet.conv_in.lora_magnitude_vector": torch.ones(16)}, "is a DoRA file"),
    "full difference": ({f"{LAYER}.diff": torch.ones(2)}, "is a full-difference file"),
    "nothing": ({}, "holds no LoRA"),
    "no LoRA": (GOOD | {"<cat-toy>": torch.ones(4)}, "1 of 3 tensors of .* are no part of a LoRA; found <cat-toy>"),
    "bias": (GOOD | {"unet.conv_in.lora_B.bias": torch.ones(16)}, "no part of a LoRA; found unet.conv_in.lora_B.bias"),
    "down alone": ({f"{LAYER}.lora_down.weight": torch.ones(2, 4, 3, 3)}, f"1 of 1 layers .* lack .*; found {LAYER}"),
    "up alone": ({f"{LAYER}.lora_up.weight": torch.ones(16, 2, 1, 1)}, "1 of 1 layers .* lack their down or their up"),
    "alpha alone": (GOOD | {f"{TO_Q}.alpha": torch.ones(())}, f"1 of 2 layers .* lack .*; found {TO_Q}"),
    "other ranks": (pair(LAYER, (2, 4, 3, 3), (16, 3, 1, 1)), "1 of 1 layers .* do not fit each other"),
    "wide up": (pair(LAYER, (2, 4, 3, 3), (16, 2, 3, 3)), "1 of 1 layers .* do not fit each other"),
    "vectors": (pair(LAYER, (2,), (16,)), "do not fit each other"),
    "many alphas": (GOOD | {f"{LAYER}.alpha": torch.ones(2)}, "do not fit each other"),
    "wide mid": (
        pair(LAYER, (2, 4, 3, 3), (16, 2, 1, 1)) | {f"{LAYER}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "do not fit"),
    "not finite": (GOOD | {f"{LAYER}.alpha": torch.tensor(float("nan"))}, f"{LAYER} in .* is not finite"),
    "infinite": (GOOD | {f"{LAYER}.lora_up.weight": torch.full((16, 2, 1, 1), torch.inf)}, f"{LAYER} .* not finite"),
    "twice": (GOOD | pair("unet.conv_in", (2, 4, 3, 3), (16, 2, 1, 1)), f"one layer twice; found .*{LAYER}"),
    "twice, by its original name": (
        GOOD | pair("lora_unet_input_blocks_0_0", (2, 4, 3, 3), (16, 2, 1, 1)), f"one layer twice; found .*{LAYER}"),
    "two spellings of a part": (GOOD | {f"{LAYER}.lora_A.weight": torch.ones(2, 4, 3, 3)}, "two tensors for the down"),
    "four unknown layers": (
        GOOD | {k: v for i in range(4) for k, v in pair(f"lora_unet_zoo_{i}", (2, 4), (4, 2)).items()},
        "4 of 5 layers of a.safetensors have no place in unet, text_encoder; found lora_unet_zoo_0, .*_2, ...\n",
    ),
    "a text encoder that is not there": (
        GOOD | pair("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", (2, 24), (24, 2)),
        "1 of 2 layers .* have no place .*; found lora_te2_.*\n  try: .* 1.x, 2.x or XL",
    ),
    "another shape": (GOOD | pair(TO_Q, (2, 24), (32, 2)), r"1 of 2 layers .*\(32, 24, 1, 1\) for \(32, 32\)"),
    "another kernel": (pair(LAYER, (2, 4, 1, 1), (16, 2, 1, 1)), "another shape than the weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_by_name_and_nothing_changed(name: str, checkpoint: Path, tmp_path: Path) -> None:
    state, message = REFUSED[name]
    good = read_lora(save(GOOD, tmp_path / "good.safetensors"))
    networks = ours(checkpoint)
    before = weights(networks)
    with pytest.raises(LdmrtError, match=message):
        merge(networks, [(good, 1.0), (read_lora(save(state, tmp_path / "a.safetensors")), 1.0)])
    assert all(torch.equal(value, before[key]) for key, value in weights(networks).items())
    merge(networks, [(good, 1.0)])
    assert not torch.equal(weights(networks)["unet.conv_in.weight"], before["unet.conv_in.weight"])


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LdmrtError, match="missing file"):
        read_lora(tmp_path / "none.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LdmrtError, match=r"cannot read .*a\.safetensors"):
        read_lora(tmp_path / "a.safetensors")
    notes = json.dumps({"unet.lora_alpha": "four"})
    peft = rename(GOOD, (LAYER, "unet.conv_in"))
    with pytest.raises(LdmrtError, match="impossible notes on conv_in"):
        read_lora(save(peft, tmp_path / "a.safetensors", lora_adapter_metadata=notes))


def test_weight_that_is_no_number(checkpoint: Path, tmp_path: Path) -> None:
    lora = read_lora(save(GOOD, tmp_path / "a.safetensors"))
    assert isinstance(lora, Lora)
    with pytest.raises(LdmrtError, match=r"impossible weight of a\.safetensors"):
        merge({"unet": load(checkpoint).unet}, [(lora, float("inf"))])
