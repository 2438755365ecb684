"""What both libraries draw: a row for each family of checkpoints and task. Imported by both interpreters."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PROMPTS = ["a red apple, noto style, blue background!", "two pears"]
OTHER_PROMPTS = ["a penguin", "a yellow background!"]
NEGATIVE = "blurred"
SEEDS = [3, 4]
STEPS, GUIDANCE = 4, 4.0
HEIGHT, WIDTH = 64, 96
SHIPPED = "emoji64"  # the trained model of this repository, beside the families


@dataclass(frozen=True)
class Case:
    """A family, what is asked of it, and optimum's class for that; the same without ORT is diffusers' class."""

    family: str  # of tests/support/families.py, or the shipped model
    task: str  # "text", "picture" (to picture) or "mask" (inpainting)
    pipeline: str
    strength: float = 1.0

    @property
    def packs(self) -> bool:
        """Whether optimum's network takes packed latents and ldmrt's does not: only its exports are compared."""
        return "Flux" in self.pipeline

    @property
    def negative(self) -> bool:
        """Whether diffusers' class has a negative prompt."""
        return not self.packs and "LatentConsistency" not in self.pipeline


CASES = (
    Case("sd15", "text", "ORTStableDiffusionPipeline"),
    Case("sd15", "picture", "ORTStableDiffusionImg2ImgPipeline", 0.8),
    Case("sd15", "mask", "ORTStableDiffusionInpaintPipeline", 0.8),
    Case("sd15-inpainting", "mask", "ORTStableDiffusionInpaintPipeline"),
    Case("sd14-2022", "text", "ORTStableDiffusionPipeline"),
    Case("sd2-base", "text", "ORTStableDiffusionPipeline"),
    Case("sd2-v", "text", "ORTStableDiffusionPipeline"),
    Case("sd-turbo", "text", "ORTStableDiffusionPipeline"),
    Case("lcm", "text", "ORTLatentConsistencyModelPipeline"),
    Case("sdxl", "text", "ORTStableDiffusionXLPipeline"),
    Case("sdxl-refiner", "picture", "ORTStableDiffusionXLImg2ImgPipeline", 0.8),
    Case("odd", "text", "ORTStableDiffusionPipeline"),
    Case("sd3", "text", "ORTStableDiffusion3Pipeline"),
    Case("sd35-medium", "text", "ORTStableDiffusion3Pipeline"),
    Case("dev", "text", "ORTFluxPipeline"),
    Case("schnell", "text", "ORTFluxPipeline"),
    Case(SHIPPED, "text", "ORTStableDiffusionPipeline"),
)


def chosen(families: Sequence[str]) -> list[Case]:
    """The cases of these families; all where none is named."""
    if unknown := set(families) - {case.family for case in CASES}:
        raise SystemExit(f"no family {', '.join(sorted(unknown))}")
    return [case for case in CASES if not families or case.family in families]


@dataclass(frozen=True)
class Place:
    """Where the files of a case lie. Those of a family's directories serve all of its cases."""

    root: Path
    case: Case

    @property
    def checkpoint(self) -> Path:
        return self.root / self.case.family / "checkpoint"

    def directory(self, maker: str) -> Path:
        """What `maker`, ldmrt or optimum, exported of the checkpoint."""
        return self.root / self.case.family / f"by-{maker}"

    def drawn(self, maker: str, by: str) -> "Drawn":
        """What `by` drew from the directory of `maker`."""
        return Drawn(self.root / self.case.family / f"{self.case.task}-{by}-from-{maker}")

    @property
    def noises(self) -> Path:
        """Unit noise in the order that diffusers draws it, (draws, pictures, channels, height, width)."""
        return self.root / self.case.family / f"{self.case.task}-noises.npy"


@dataclass(frozen=True)
class Drawn:
    """Pictures of one side, or why there are none."""

    path: Path

    def save(self, images: NDArray[np.uint8]) -> None:
        self.path.with_suffix(".json").unlink(missing_ok=True)
        np.save(self.path.with_suffix(".npy"), images)

    def fail(self, error: BaseException) -> None:
        self.path.with_suffix(".npy").unlink(missing_ok=True)
        self.path.with_suffix(".json").write_text(json.dumps(f"{type(error).__name__}: {error}"))

    @property
    def error(self) -> str:
        """In one line; empty where there are pictures."""
        path = self.path.with_suffix(".json")
        return " ".join(json.loads(path.read_text()).split()) if path.exists() else ""

    @property
    def images(self) -> NDArray[np.uint8]:
        """(N, H, W, 3)."""
        return np.load(self.path.with_suffix(".npy"))


def picture() -> Image.Image:
    """Smooth and coloured, of the size that is drawn."""
    small = np.random.default_rng(0).integers(0, 255, (5, 4, 3), np.uint8)
    return Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def mask() -> Image.Image:
    """White on the lower right."""
    area = np.zeros((HEIGHT, WIDTH), np.uint8)
    area[HEIGHT // 4 :, WIDTH // 3 :] = 255
    return Image.fromarray(area)
