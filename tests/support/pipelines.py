"""Networks and pipelines of every family, with random weights, saved by diffusers."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from .families import (
    _OLD_FIELDS,
    _OLD_NAMES,
    CAPTIONS,
    CONDITIONED,
    END,
    FAMILIES,
    LENGTH,
    PLAIN,
    START,
    Config,
    Family,
)


def randomise(module: Any, seed: int = 0) -> Any:
    """The module in eval mode, no weight at the one or zero that hides a mistake."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, value in sorted(module.named_parameters()):
            value.add_(0.1 * torch.randn(value.shape, generator=generator).to(value.dtype))
    return module.eval()


@cache
def tokenizer_files(pad: str) -> dict[str, bytes]:
    """Those of the hub's tokenizer folders; special_tokens_map.json has the last word on the padding."""
    from ldmrt.model.training.tasks.tokenizer import train_tokenizer

    files = train_tokenizer(CAPTIONS, entries=600, length=LENGTH)
    del files["tokenizer.json"]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    return {**files, "special_tokens_map.json": json.dumps(special, indent=2).encode()}


def _text_encoder(config: Config, kind: str) -> Any:
    import torch
    import transformers

    vocabulary = json.loads(tokenizer_files(END)["vocab.json"])
    eos = vocabulary[END] if config["eos_token_id"] is None else config["eos_token_id"]
    torch.manual_seed(4)
    return getattr(transformers, kind)(
        transformers.CLIPTextConfig(**config | {"vocab_size": len(vocabulary), "eos_token_id": eos})
    )


def networks(family: Family) -> dict[str, Any]:
    """diffusers' and transformers' networks with random weights, by component."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel

    torch.manual_seed(3)
    made = {"unet": (UNet2DModel if family in PLAIN.values() else UNet2DConditionModel)(**family.unet)}
    if family.vae:
        made["vae"] = (VQModel if "num_vq_embeddings" in family.vae else AutoencoderKL)(**family.vae)
    if family.text_encoder:
        made["text_encoder"] = _text_encoder(family.text_encoder, "CLIPTextModel")
    if family.text_encoder_2:
        made["text_encoder_2"] = _text_encoder(family.text_encoder_2, "CLIPTextModelWithProjection")
    return {name: randomise(network, seed) for seed, (name, network) in enumerate(made.items())}


def save_pipeline(name: str, folder: Path, **how: Any) -> Path:
    """Write the family's pipeline into `folder`, as the hub has it; `how` goes to diffusers' save_pretrained."""
    import diffusers
    from transformers import CLIPTokenizer

    if name in PLAIN:
        return _save_plain(PLAIN[name], folder)
    family = {**FAMILIES, **CONDITIONED}[name]
    parts: Config = {"text_encoder": None, "tokenizer": None, **networks(family), **family.extra}
    pads = {"tokenizer": family.pad, "tokenizer_2": "!"}
    held = [name for name in pads if parts.get(name.replace("tokenizer", "text_encoder")) is not None]
    for tokenizer in held:
        for file, content in tokenizer_files(pads[tokenizer]).items():
            (folder / tokenizer).mkdir(parents=True, exist_ok=True)
            (folder / tokenizer / file).write_bytes(content)
        parts[tokenizer] = CLIPTokenizer.from_pretrained(folder / tokenizer)
    schedulers = {"scheduler": family.scheduler, "low_res_scheduler": family.extra.get("low_res_scheduler")}
    parts |= {name: getattr(diffusers, c["_class_name"]).from_config(c) for name, c in schedulers.items() if c}
    if family.text_encoder_2 is None:
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts |= {} if "low_res_scheduler" in parts else {"requires_safety_checker": False}
        parts |= {"image_encoder": None} if "LDM3D" in family.pipeline else {}
    getattr(diffusers, family.pipeline)(**parts).save_pretrained(folder, **how)
    for tokenizer in held:
        (folder / tokenizer / "tokenizer.json").unlink(missing_ok=True)  # not on the hub
        for file, content in tokenizer_files(pads[tokenizer]).items():
            (folder / tokenizer / file).write_bytes(content)
    _write(folder / "scheduler" / "scheduler_config.json", family.scheduler)
    if family.old:
        _make_old(folder)
    return folder


def _save_plain(family: Family, folder: Path) -> Path:
    """Write the pipeline of a family whose U-Net reads no prompt."""
    import diffusers

    parts = {"vqvae" if name == "vae" else name: network for name, network in networks(family).items()}
    parts["scheduler"] = getattr(diffusers, family.scheduler["_class_name"]).from_config(family.scheduler)
    getattr(diffusers, family.pipeline)(**parts).save_pretrained(folder)
    return folder


def _make_old(folder: Path) -> None:
    """Take away what was not there in 2022, and name as then."""
    for part, fields in _OLD_FIELDS.items():
        path = folder / part / "config.json"
        config = json.loads(path.read_text())
        _write(path, {key: value for key, value in config.items() if key in fields})
    for path in folder.glob("vae/*.safetensors"):
        _rename(path, lambda key: _replaced(key) if ".attentions." in key else key)
    for path in folder.glob("text_encoder/*.safetensors"):
        _rename(path, lambda key: f"text_model.{key.removeprefix('text_model.')}")


def _replaced(key: str) -> str:
    for new, old in _OLD_NAMES.items():
        key = key.replace(new, old)
    return key


def _rename(path: Path, to: Any) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    state = {to(key): value for key, value in load_file(path).items()}
    if path.parent.name == "text_encoder":
        state["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    save_file(state, path, metadata={"format": "pt"})


def _write(path: Path, value: Config) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
