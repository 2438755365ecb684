"""Open a CLIP model that compares images with captions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.hub import fetch, is_hub_name
from ldmrt.runtime.files.reading import read_json
from ldmrt.runtime.optional import unavailable

FILES = ("*.json", "*.txt", "model*.safetensors")  # of a model on the hub
OLDER = "pytorch_model*.bin"  # weights of a model that has none as safetensors
Features = NDArray[np.float64]  # (N, d)
Clip = Callable[[NDArray[np.uint8], Sequence[str]], tuple[Features, Features]]


def open_clip(source: str) -> Clip:
    """Open a CLIP model in the format of transformers, on the CPU.

    Args:
        source: A folder that holds a `CLIPModel` and its `CLIPProcessor`, or the name of one on the hub.

    Returns:
        A function of images (N, H, W, 3), uint8, and N captions, whose features (N, d) it returns. Captions that are
        too long are cut, as torchmetrics does.

    Raises:
        LdmrtError: There is no such folder or model, or it is no CLIP model.
    """
    folder = clip_folder(source)
    model, processor = load_clip(folder)
    most = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def features(images: NDArray[np.uint8], captions: Sequence[str]) -> tuple[Features, Features]:
        pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
        with quiet():  # captions that are too long are cut below
            texts = processor(text=list(captions), return_tensors="pt", padding=True)
        ids, mask = (texts[name][:, :most] for name in ("input_ids", "attention_mask"))
        return pooled(model.get_image_features(pixels)), pooled(model.get_text_features(ids, mask))

    return features


def clip_folder(source: str) -> Path:
    """Return the folder of a CLIP model; one on the hub is fetched into the hub's cache first.

    Raises:
        LdmrtError: There is no such folder or model, or it is of another type.
    """
    folder = Path(source)
    if not folder.exists() and is_hub_name(source):
        folder = fetch("--clip", source, FILES)
        if not any(folder.glob(FILES[-1])):
            folder = fetch("--clip", source, [*FILES, OLDER])
    config = folder / "config.json"
    hint = "a folder of a CLIPModel, or a name on the hub such as openai/clip-vit-base-patch32"
    if not config.is_file():
        raise LdmrtError("--clip", f"no CLIP model in {source}", expected="config.json", hint=hint)
    if (kind := read_json("--clip", config).get("model_type")) != "clip":
        raise LdmrtError("--clip", f"{source} is no CLIP model", expected="model_type clip", found=kind, hint=hint)
    return folder


def load_clip(folder: Path) -> tuple[Any, Any]:
    """Load a model and its processor with transformers.

    Raises:
        LdmrtError: transformers is missing, or cannot load them.
    """
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise unavailable(error, "--clip") from None
    try:
        with quiet():
            loaded: Any = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
            processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers checks files in many ways
        problem, expected = f"{folder} cannot be loaded", "CLIPModel and CLIPProcessor as transformers saves them"
        raise LdmrtError("--clip", problem, expected=expected, found=first_line(error)) from None
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise LdmrtError("--clip", f"{folder} lacks weights", found=f"{len(missing)}, such as {missing[0]}")
    return model.float().eval(), processor


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and progress bars of transformers."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def pooled(output: Any) -> Features:
    """Return features as float64; transformers before 5 returns them alone, later ones with all else."""
    return np.asarray(getattr(output, "pooler_output", output).double().numpy())
