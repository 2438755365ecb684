"""Read small files of tensors, LoRA and textual inversion: safetensors or torch.save, told by their first bytes."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from ldmrt.runtime.errors import LdmrtError, first_line

from .pickled import load_pickle
from .weights import is_safetensors

FOREIGN = {
    b"\x89PNG": "a PNG image",
    b"RIFF": "a WebP image",
    b"\xff\xd8": "a JPEG image",
    b"\xff\x0a": "a JPEG XL image",
    b"\x00\x00\x00\x0cJXL": "a JPEG XL image",
    b"<": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS",
}


def read(component: str, path: Path) -> tuple[object, dict[str, str]]:
    """Read the object in a file, a tensor or a dict, and a safetensors file's metadata.

    Nothing is unpickled but tensors and plain Python values.
    """
    with path.open("rb") as file:
        head = file.read(32)
    foreign = next((kind for begin, kind in FOREIGN.items() if head.startswith(begin)), None)
    if foreign and head[8:9] != b"{":  # which begins the header of safetensors, after its length
        raise LdmrtError(component, f"cannot read {path}", expected="a file of tensors", found=foreign)
    pickled = not is_safetensors(component, path)
    try:
        if pickled:
            with torch.serialization.safe_globals([nn.ParameterDict]):  # of the first textual inversion code
                return load_pickle(component, path), {}
        with safe_open(path, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except LdmrtError:
        raise
    except Exception as error:  # safetensors, pickle and zip raise classes of their own
        expected = "tensors alone, in a whole file of torch.save" if pickled else "a whole safetensors file"
        raise LdmrtError(component, f"cannot read {path}", expected=expected, found=first_line(error)) from None
