"""Kinds of files and folders, recognised by names alone: for errors about one kind in the place of another.

Nothing is unpickled and no weight is read: the names of tensors stand in the first bytes of a safetensors file, and in
one entry of the archive that torch.save writes.
"""

import contextlib
import re
import shlex
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError

from .reading import read_json

BUNDLE, CHECKPOINT, LORA, EMBEDDING = "bundle", "checkpoint", "LoRA", "textual inversion"
UPSCALE = "upscale model"
CONTROLNET, ADAPTER, AUTOENCODER, TRANSFORMER = "ControlNet", "T2I-Adapter", "autoencoder", "transformer"
NO_CHECKPOINTS = (
    BUNDLE,
    LORA,
    EMBEDDING,
    CONTROLNET,
    ADAPTER,
    AUTOENCODER,
    UPSCALE,
)  # a transformer's file may be one
GGUF = b"GGUF"  # how files of llama.cpp's format begin
MANIFEST, GRAPHS = "ldmrt.json", "*/model.onnx"  # a bundle has both, one of optimum the latter
MOST = 8 << 20  # bytes that are searched for names
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)  # of any archive
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

# The first that a file's names match decides: a checkpoint may hold what training left, a LoRA new words.
_TENSORS = (
    (CHECKPOINT, rb"model\.diffusion_model\.(input_blocks\.0\.0|out\.2)\.(weight|bias)\b"),
    (
        LORA,
        rb"lora_(up|down|A|B|unet|te\d?)|lora[12]?\.(up|down)|lora_linear_layer|hada_w|lokr_w|dora_scale|lycoris_"
        rb"|\.oft_|\.(diff|diff_b|w_norm|b_norm)\b|bundle_emb\.",
    ),
    (CHECKPOINT, rb"model\.diffusion_model\."),
    (CONTROLNET, rb"control_model\.|controlnet_cond_embedding|input_hint_block|controlnet_blocks\."),
    (
        TRANSFORMER,
        rb"\b(double_blocks\.0\.img_mod\.lin|joint_blocks\.0\.x_block|transformer_blocks\.0\.attn\.add_q_proj)\.",
    ),
    (EMBEDDING, rb"string_to_param|emb_params|\"clip_[lg]\""),
    (AUTOENCODER, rb"decoder\.conv_in\.|first_stage_model\."),
    (UPSCALE, rb"(?i)\brdb1\.conv1\b|\bparams_ema\b|\bconv_first\.weight|\bbody\.0\.weight|\bRRDB_trunk\."),
)
_CLASSES = {"ControlNetModel": CONTROLNET, "T2IAdapter": ADAPTER}
_CLASSES |= dict.fromkeys(("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"), AUTOENCODER)
_CLASSES |= dict.fromkeys(("SD3Transformer2DModel", "FluxTransformer2DModel"), TRANSFORMER)
_CLASSES |= dict.fromkeys(
    ("PixArtTransformer2DModel", "SanaTransformer2DModel", "ZImageTransformer2DModel"), TRANSFORMER
)
_NEXT = {
    BUNDLE: 'ldmrt generate {path} "PROMPT", or the checkpoint that the bundle was exported from',
    CHECKPOINT: "ldmrt export {path} {out}",
    LORA: "ldmrt export CHECKPOINT BUNDLE --lora {path}",
    EMBEDDING: "ldmrt export CHECKPOINT BUNDLE --embedding {path}",
    CONTROLNET: "ldmrt export CHECKPOINT BUNDLE --controlnet NAME={path}",
    ADAPTER: "ldmrt export CHECKPOINT BUNDLE --adapter NAME={path}",
    AUTOENCODER: "ldmrt export CHECKPOINT BUNDLE --vae {path}",
    UPSCALE: "ldmrt export {path} {out}",
    TRANSFORMER: "ldmrt export CHECKPOINT BUNDLE --transformer {path}",
}


def kind_of(path: Path) -> str:
    """Return the kind of a file or folder, such as `BUNDLE`, or "" where no kind or more than one matches."""
    with contextlib.suppress(*UNREADABLE):
        return _of_folder(path) if path.is_dir() else _of_file(path) if path.is_file() else ""
    return ""


def refuse_other(where: str, path: Path, wanted: str, *others: str) -> None:
    """Refuse a path that is recognised as another kind.

    Args:
        where: What the path was meant for, for errors.
        path: A file or folder; one that is not recognised is not refused.
        wanted: The kind that it should be.
        others: The kinds to refuse; all but `wanted` where none is named.

    Raises:
        LdmrtError: The path is not of these kinds; the hint is the command that takes it. Or it is GGUF.
    """
    refuse_gguf(where, path, f"{'an' if wanted[0] in 'aeiou' else 'a'} {wanted}")
    kind = kind_of(path)
    if kind and kind != wanted and (not others or kind in others):
        out = shlex.quote((Path("out") / path.stem).as_posix())
        hint = _NEXT[kind].format(path=shlex.quote(str(path)), out=out)
        article = "an" if kind[0] in "aeiou" else "a"
        raise LdmrtError(where, f"{path} is {article} {kind}, not a {wanted}", hint=hint)


def refuse_gguf(where: str, path: Path, expected: str = "a .safetensors file") -> None:
    """Refuse a GGUF file, whose weights are rounded to few bits in blocks, and a folder with no other weights.

    Args:
        where: What the path was meant for, for errors.
        path: A file, which is known by its first bytes, or a folder, whose files are known by their names.
        expected: What the path should be.

    Raises:
        LdmrtError: It is one; the hint says what to use instead.
    """
    begin, name = b"", ""
    with contextlib.suppress(OSError, ValueError):
        if path.is_file():
            with path.open("rb") as file:
                begin = file.read(len(GGUF))
        elif path.is_dir() and not _runs(path) and not (path / "model_index.json").is_file():
            name = only_gguf(entry.name for entry in path.iterdir())
    if begin == GGUF or name:
        raise gguf_error(where, path / name, expected)


def only_gguf(names: Iterable[str]) -> str:
    """Return the first name of a GGUF file among those of files; "" where one of them is that of other weights."""
    suffixes = {name: Path(name).suffix.lower() for name in sorted(names)}
    first = next((name for name, suffix in suffixes.items() if suffix == ".gguf"), "")
    return "" if any(suffix in WEIGHTS for suffix in suffixes.values()) else first


def gguf_error(where: str, path: object, expected: str = "a .safetensors file") -> LdmrtError:
    """Make the error about a GGUF file, which says what to use instead."""
    hint = "ldmrt export reads the .safetensors file that it was made of, also in float8"
    return LdmrtError(where, f"{path} is a GGUF file", expected=expected, hint=hint)


def expect_bundle(path: Path) -> None:
    """Refuse a path that is not a bundle but something else, lies in a bundle, or has bundles in it.

    Raises:
        LdmrtError: Its hint names the bundle, or the command that takes this kind.
    """
    refuse_other("bundle", path, BUNDLE)
    if path.is_dir() and _runs(path):
        return
    near: list[Path] = []
    with contextlib.suppress(OSError, ValueError):
        near += path.resolve(strict=True).parents[:2]
        near += sorted(path.iterdir()) if path.is_dir() else []
    if bundle := next((folder for folder in near if kind_of(folder) == BUNDLE), None):
        raise LdmrtError("bundle", f"{path} is not a bundle", hint=f"{shlex.quote(str(bundle))}, which is one")


def _runs(folder: Path) -> bool:
    """Tell whether a folder has a manifest or graphs."""
    return (folder / MANIFEST).is_file() or any(folder.glob(GRAPHS))


def _of_folder(path: Path) -> str:
    """Recognise a folder by the files in it."""
    folders = [folder for name in ("unet", "transformer") if (folder := path / name).is_dir()]
    weights = any(file.suffix in WEIGHTS for folder in folders for file in folder.iterdir())
    if _runs(path):
        return "" if weights else BUNDLE
    if (path / "model_index.json").is_file():
        return CHECKPOINT
    if (path / "adapter_config.json").is_file() or (path / "pytorch_lora_weights.safetensors").is_file():
        return LORA
    return _CLASSES.get(_class_name(path / "config.json"), "")


def _class_name(config: Path) -> str:
    """Return the class that a config.json names; "" where it cannot be read."""
    try:
        return str(read_json("config", config).get("_class_name"))
    except LdmrtError:
        return ""


def _of_file(path: Path) -> str:
    """Recognise a file of weights by the names of its tensors."""
    if path.suffix not in WEIGHTS:
        return ""
    names = _names(path)
    return next((kind for kind, pattern in _TENSORS if re.search(pattern, names)), "")


def _names(path: Path) -> bytes:
    """Read the bytes of a file that hold the names of its tensors, without its weights."""
    with path.open("rb") as file:
        start = file.read(8)
        if start[:2] == b"PK":
            with zipfile.ZipFile(path) as archive:
                pickled = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
                if pickled is None:
                    return b""
                with archive.open(pickled) as entry:
                    return entry.read(MOST)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        return start + file.read(min(size, MOST))
