"""Read names in LoRA files: the part of a layer, and the module it is for, in the spellings that trainers write."""

import fnmatch
import re

from ldmrt.runtime.errors import LdmrtError

# How a layer's name begins, "_" for ".", and the component it then belongs to. Others name it by their modules.
PREFIXES = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "lora_te3_": "text_encoder_3",
    "lora_transformer_": "transformer",
    "unet_": "unet",
    "transformer.": "transformer",  # with its dot: the blocks of a transformer are "transformer_blocks" themselves
    "text_encoder_3_": "text_encoder_3",
    "text_encoder_2_": "text_encoder_2",
    "text_encoder_": "text_encoder",
    "model_diffusion_model_": "unet",
    "diffusion_model_": "unet",
    "text_encoders_clip_l_transformer_": "text_encoder",  # ComfyUI's
    "text_encoders_clip_g_transformer_": "text_encoder_2",
    "text_encoders_clip_h_transformer_": "text_encoder",
    "text_encoders_t5xxl_transformer_": "text_encoder_3",
}
# Where a checkpoint has no network of this name, the one that is meant: trainers count T5 as the third text encoder
OTHERWISE = {"unet": "transformer", "text_encoder_3": "text_encoder_2"}
PEFT = "base_model.model."  # PEFT's own files begin with it, or have it after the network
WRAPPERS = ("base_model_model_", "lycoris_")
TEXT_PARTS = ("text_model_", "encoder_layers_", "embeddings_", "final_layer_norm_")

LOKR = ("w1", "w1_a", "w1_b", "t1", "w2", "w2_a", "w2_b", "t2")
# LyCORIS' extraction writes what a low rank lacks as a sparse tensor, whose indices and size are whole numbers
INDICES, VALUES, SIZE = SPARSE = ("bias_indices", "bias_values", "bias_size")

# The end of a tensor's name, and the part of a layer that it is. PEFT may put its adapter's name before the last word.
PARTS = {
    r"(?:\.lora_(?:down|A)(?:\.[^.]+)?|(?:_lora|\.lora|\.lora_linear_layer)\.down)\.weight": "down",
    r"(?:\.lora_(?:up|B)(?:\.[^.]+)?|(?:_lora|\.lora|\.lora_linear_layer)\.up)\.weight": "up",
    r"(?:\.lora_(?:up|B)(?:\.[^.]+)?|(?:_lora|\.lora|\.lora_linear_layer)\.up)\.bias": "up_bias",
    r"\.lora_mid(?:\.[^.]+)?\.weight": "mid",
    **{rf"\.hada_{part}(?:\.[^.]+)?": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{rf"\.lokr_{part}(?:\.[^.]+)?": f"lokr_{part}" for part in LOKR},
    r"(?<=_lora[12])\.down\.weight": "down",  # XLabs'
    r"(?<=_lora[12])\.up\.weight": "up",
    r"\.(?:diff|w_norm)": "diff",
    r"\.(?:diff_b|b_norm)": "diff_b",
    r"\.dora_scale": "dora_scale",
    **{rf"\.{part}": part for part in SPARSE},
    r"\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?": "magnitude",
    r"\.alpha": "alpha",
}
ENDS = [(re.compile(rf"(.+?){end}"), part) for end, part in PARTS.items()]
# Other methods that are shared under the name of LoRA and are not merged, by the names of their tensors
OTHERS = {
    r"\.[ab][12]\.weight$|\.glora_": "GLoRA",
    r"boft_": "BOFT",
    r"\.oft_": "OFT",
    r"\.on_input$|\.ia3_": "(IA)^3",
    r"\.lora_E(\.|$)": "AdaLoRA",
    r"\.lora_embedding_[AB]": "LoRA of an embedding",
    r"\.lambda_layer": "T-LoRA",
    r"\.vera_lambda_": "VeRA",
    r"\.hira_": "HiRA",
}
# Norms that Black Forest Labs' control LoRAs replace beside their layers; those widen the input of FLUX.1
CONTROL = re.compile(r"\.(?:query|key)_norm\.scale$")


def split(key: str) -> tuple[str, str] | None:
    """Split a tensor's name into that of its layer and its part in it; None where it is no part of a layer."""
    return next(((match[1], part) for end, part in ENDS if (match := end.fullmatch(key))), None)


def other_kind(key: str, ndim: int) -> str | None:
    """Name the method that a tensor belongs to, if it is one that is not merged."""
    kind = next((kind for mark, kind in OTHERS.items() if re.search(mark, key)), None)
    return "BOFT" if kind == "OFT" and ndim == 4 else kind  # LyCORIS calls the blocks of both alike


def place(layer: str) -> tuple[str, str]:
    """Return the component that a layer's name belongs to, and the module in it; kohya's names stay underscored."""
    component, name = None, _unwrapped(layer)
    if prefix := next((prefix for prefix in PREFIXES if prefix in _starts(name, len(prefix))), ""):
        component, name = PREFIXES[prefix], _unwrapped(name[len(prefix) :])
    elif name.replace(".", "_").startswith(TEXT_PARTS):
        component = "text_encoder"
    component = component or "unet"
    head, _, tail = name.replace(".processor.", ".").rpartition(".")
    if head and component == "unet" and tail == "to_out":  # diffusers' attention processors had names of their own
        tail = "to_out.0"
    elif head and component.startswith("text_encoder") and tail in ("to_q", "to_k", "to_v", "to_out"):
        tail = tail.removeprefix("to_") + "_proj"
    return component, f"{head}.{tail}" if head else tail


def flat(module: str) -> str:
    """Write a module's name as kohya does; transformers 5 dropped the prefix of a text encoder's weights."""
    return module.replace(".", "_").removeprefix("text_model_")


def matches(pattern: str, module: str) -> bool:
    """Tell whether a key of PEFT's `alpha_pattern` or `rank_pattern` is for a module: its name or its last parts.

    PEFT takes keys for regular expressions. Those of names, `.`, `.*`, sets and alternatives are matched here, in time
    that grows with their length alone; others are refused.
    """
    return any(_alternative(part, module) for part in pattern.split("|"))


def _alternative(pattern: str, module: str) -> bool:
    """Match one alternative of a pattern as a shell wildcard."""
    bare = pattern.removeprefix("^").removesuffix("$")
    if len(bare) > 500 or not re.fullmatch(r"(?:[\w-]|\\\.|\.\*?|\\d|\[[\w-]+\])*", bare):
        raise LdmrtError("lora", "unsupported regular expression", expected="names, . and .*", found=pattern[:80])
    for expression, wildcard in ((r"\.", "\0"), (r"\d", "[0-9]"), (".*", "*"), (".", "?"), ("\0", ".")):
        bare = bare.replace(expression, wildcard)
    whole = [bare] if pattern.startswith("^") else [bare, f"*.{bare}"]
    return any(fnmatch.fnmatchcase(module, wildcards) for wildcards in whole)


def _starts(name: str, length: int) -> tuple[str, str]:
    """Return the first letters of a name as they are, and with "_" for "."."""
    return name[:length], name[:length].replace(".", "_")


def _unwrapped(name: str) -> str:
    """Remove from a name the prefixes that PEFT and LyCORIS put before those of the network that they wrap."""
    for wrapper in WRAPPERS:
        if name.replace(".", "_").startswith(wrapper):
            return name[len(wrapper) :]
    return name
