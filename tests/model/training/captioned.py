"""Three captioned pictures, and what a checkpoint of Stable Diffusion learns from them."""

import numpy as np
from torch import nn

from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.model.training.data.captioned import Sample, Sizes
from ldmrt.model.training.data.regularisation import Regularisation
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.model.training.loop.task import TrainingTask
from ldmrt.model.training.tasks.beside import Beside
from ldmrt.model.training.tasks.finetune import Conditions, conditioned_task, encoders_of
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

CAPTIONS = ("a red apple", "two pears", "a penguin on a yellow background!")


class Three:
    """Three captioned pictures, each a part of a larger one."""

    def __len__(self) -> int:
        return 3

    def draw(self, seed: int, index: int) -> Sample:
        which = (seed + index) % 3
        picture = np.random.default_rng(which).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return Sample(picture, CAPTIONS[which], (which,), Sizes((40 + which, 30), (2 * which, which), (16, 16)))

    def caption(self, seed: int, index: int) -> str:
        return self.draw(seed, index).caption


def task_of(
    checkpoint: Checkpoint,
    denoiser: nn.Module,
    dropout: float = 0.5,
    beside: Beside | None = None,
    regularisation: Regularisation | None = None,
) -> TrainingTask:
    tokenizers = {
        name: Tokenizer(checkpoint.tokenizers[name.replace("text_encoder", "tokenizer")])
        for name in encoders_of(denoiser)
    }
    objective, conditions = Objective.of(checkpoint.scheduler, "cpu"), Conditions.of(checkpoint.stage, dropout)
    data, vae = Three(), checkpoint.vae
    return conditioned_task(
        denoiser,
        data,
        vae,
        tokenizers,
        objective,
        conditions,
        beside,
        regularisation=regularisation,  # type: ignore[arg-type]
    )
