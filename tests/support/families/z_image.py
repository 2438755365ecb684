"""Z-Image as diffusers' pipelines save it, small and with random weights."""

from functools import cache
from pathlib import Path
from typing import Any

from .stable_diffusion import CAPTIONS, Config

WIDTH = 40  # of Qwen3's states
LESS = 0.5
_TRANSFORMER: Config = {
    "in_channels": 4,
    "dim": 48,
    "n_layers": 2,
    "n_refiner_layers": 2,
    "n_heads": 3,
    "n_kv_heads": 3,
    "cap_feat_dim": WIDTH,
    "axes_dims": [4, 6, 6],
    "axes_lens": [640, 64, 64],
}
_VAE: Config = {
    "block_out_channels": [8] * 4, "down_block_types": ["DownEncoderBlock2D"] * 4, "latent_channels": 4,
    "layers_per_block": 1, "norm_num_groups": 4, "scaling_factor": 0.3611, "shift_factor": 0.1159,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "use_post_quant_conv": False, "use_quant_conv": False,
}  # fmt: skip
_QWEN: Config = {
    "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
# The configs of the transformer, Qwen3 and the scheduler.
Z_IMAGE: dict[str, tuple[Config, Config, Config]] = {
    "turbo": (_TRANSFORMER, _QWEN, {"shift": 3.0}),
    # The text encoder with its head, and a shift that grows with the image, as no published model has it.
    "other": (
        _TRANSFORMER | {"n_refiner_layers": 1, "t_scale": 500.0},
        _QWEN | {"tie_word_embeddings": False},
        {"use_dynamic_shifting": True},
    ),
}
# What the published template comes to where a chat is one message, and nothing is asked for but the answer.
TEMPLATE = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endif %}"
)


@cache
def qwen_tokenizer() -> Any:
    """Return a tokenizer of Qwen2's class whose vocabulary is learned from a few captions."""
    import json

    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner: Any = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator([*CAPTIONS, "user assistant"], trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=model["vocab"], merges=merges, eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_z_image(name: str, folder: Path) -> Path:
    """Write a pipeline of this family into `folder`, as the hub has it, and return the folder."""
    import diffusers
    import torch
    import transformers

    from ..pipelines import randomise

    transformer, text, scheduler = Z_IMAGE[name]
    torch.manual_seed(7)
    tokenizer = qwen_tokenizer()
    config = transformers.Qwen3Config(**text, vocab_size=len(tokenizer) + 12)
    kind = "Qwen3ForCausalLM" if name == "other" else "Qwen3Model"
    networks: dict[str, Any] = {
        "transformer": diffusers.ZImageTransformer2DModel(**transformer),
        "vae": diffusers.AutoencoderKL(**_VAE),
        "text_encoder": getattr(transformers, kind)(config),
    }
    parts = {name: randomise(network, seed) for seed, (name, network) in enumerate(networks.items())}
    with torch.no_grad():
        parts["transformer"].all_final_layer["2-1"].linear.weight.mul_(LESS)
    own = diffusers.FlowMatchEulerDiscreteScheduler(**scheduler)
    diffusers.ZImagePipeline(tokenizer=tokenizer, scheduler=own, **parts).save_pretrained(folder)
    return folder
