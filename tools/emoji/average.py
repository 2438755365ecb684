"""Average the decoder of a checkpoint with another training of it, which has seen the same latents.

`python -m ldmrt.tools.emoji.average CHECKPOINT TRAINED SHARE OUT` writes OUT, a file of weights in float16: those of
CHECKPOINT/vae, of whose decoder SHARE (0 to 1) is that of TRAINED/vae, from `ldmrt train autoencoder --decoder-of`.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ldmrt.runtime.errors import LdmrtError

from .ship import halved

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
DECODER = ("decoder.", "post_quant_conv.")


def average(checkpoint: Path, trained: Path, share: float, out: Path) -> None:
    """Write the autoencoder of a checkpoint, with its decoder averaged with another's in float32; the rest stays.

    Raises LdmrtError where the two differ in anything but the decoder, as such a decoder reads other latents.
    """
    old, new = load_file(checkpoint / WEIGHTS), load_file(trained / WEIGHTS)
    differ = old.keys() ^ new.keys() | {
        name
        for name in old.keys() & new.keys()
        if old[name].shape != new[name].shape
        or not (name.startswith(DECODER) or torch.equal(old[name].float(), new[name].float()))
    }
    if differ:
        raise LdmrtError(
            "average",
            f"{trained} is not a training of the decoder of {checkpoint}",
            expected="weights that differ in the decoder alone",
            found=f"{len(differ)} others, such as {min(differ)}",
            hint=f"ldmrt train autoencoder --decoder-of {checkpoint}",
        )
    for name in old:
        if name.startswith(DECODER):
            old[name] = (1 - share) * old[name].float() + share * new[name].float()
    save_file({name: halved(weight) for name, weight in old.items()}, out, metadata={"format": "pt"})


if __name__ == "__main__":
    average(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
