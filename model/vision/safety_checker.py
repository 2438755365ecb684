"""Load Stable Diffusion's safety checker: CLIP's image encoder, and the embeddings of concepts to be recognised."""

from dataclasses import replace
from pathlib import Path

import torch

from ldmrt.model.checkpoint.checkpoint import Checkpoint, from_transformers, on_meta
from ldmrt.model.checkpoint.folder import part_of_folder
from ldmrt.model.config import check_depth
from ldmrt.model.library.clip_vision import CLIP_VISION, SafetyChecker
from ldmrt.model.weights.lazy import Place, as_it_is
from ldmrt.model.weights.weights import Tensors, fill, match
from ldmrt.runtime.bundle.graphs import SAFETY_CHECKER
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject, read_json
from ldmrt.runtime.images.clip import DEVIATION, MEAN

KIND = "StableDiffusionSafetyChecker"
OLD = "vision_model.vision_model."  # how names begin in files before transformers 5


def with_safety_checker(
    checkpoint: Checkpoint, folder: str | Path, *, dtype: torch.dtype | None = torch.float32
) -> Checkpoint:
    """Add the safety checker that diffusers' pipelines of Stable Diffusion 1 and 2 have.

    Args:
        checkpoint: The model, which is not changed.
        folder: A folder `safety_checker` in diffusers' layout, or the checkpoint's folder that holds it.
        dtype: The dtype of all its weights; None leaves them as they are stored.

    Returns:
        The model with its safety checker.

    Raises:
        LdmrtError: The folder holds something else or is damaged, or its images are prepared otherwise than CLIP's.
    """
    place = Path(folder) if (Path(folder) / "config.json").exists() else Path(folder) / SAFETY_CHECKER
    config = read_json(SAFETY_CHECKER, place / "config.json")
    kind = (config.get("architectures") or [config.get("_class_name") or KIND])[0]
    vision = config.get("vision_config")
    if kind != KIND or not isinstance(vision, dict):
        raise LdmrtError(SAFETY_CHECKER, f"{place} holds no safety checker", expected=KIND, found=kind)
    vision = {**vision, "projection_dim": config.get("projection_dim", 512)}
    tensors = part_of_folder(SAFETY_CHECKER, place)
    check_depth(SAFETY_CHECKER, vision, lambda: len(tensors.named))
    old = any(key.startswith(OLD) for key in tensors.named)

    def place_of(key: str) -> Place:
        """Return the place of a weight in this very file."""
        name = key.removeprefix("model.")
        return (f"vision_model.{name}" if old and name.startswith("vision_model.") else name), as_it_is

    numbers = [tensors.named[name].shape[0] for name in SafetyChecker.COUNTED if name in tensors.named]
    with on_meta(SAFETY_CHECKER):
        model = from_transformers(SAFETY_CHECKER, CLIP_VISION, "CLIPVisionConfig", vision)
        checker = SafetyChecker(model, *(numbers if len(numbers) == 2 else (1, 1)))
    named = {key: tensor for key, tensor in tensors.named.items() if not key.endswith("position_ids")}
    tensors = Tensors(named, tensors.where, place_of)
    _check_images(place.parent / "feature_extractor" / "preprocessor_config.json", int(model.config.image_size))
    fill(SAFETY_CHECKER, checker, match(SAFETY_CHECKER, checker, tensors), tensors, dtype)
    return replace(checkpoint, safety_checker=checker)


def _check_images(path: Path, size: int) -> None:
    """Refuse images that are prepared otherwise than CLIP's, where a file says how."""
    if not path.is_file():
        return
    config = read_json(SAFETY_CHECKER, path)
    expected: JsonObject = {"image_mean": MEAN.tolist(), "image_std": DEVIATION.tolist(), "crop_size": size}
    for name, value in expected.items():
        found = config.get(name, value)
        found = found.get("height") if isinstance(found, dict) else found
        same = isinstance(found, list) and len(found) == len(value) and max(
            abs(one - other) for one, other in zip(found, value, strict=True)
        ) < 1e-6 if isinstance(value, list) else found == value  # fmt: skip
        if not same:
            problem = f"unknown {name} of the safety checker's images"
            raise LdmrtError(SAFETY_CHECKER, problem, expected=value, found=found)
