"""Keep moving averages of a run's weights, one for each decay (Polyak & Juditsky 1992)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]  # by name


class Averages:
    """Keeps an average of the weights for each decay; the first is the one that is measured, drawn and written."""

    def __init__(self, weights: Mapping[str, Tensor], decays: Sequence[float], device: str | None = None) -> None:
        """Begin with the first weights.

        Args:
            weights: By name; buffers too.
            decays: Of the averages, from 0 to below 1, each once.
            device: Where the averages are kept; None for where the weights are.
        """
        self.device = device
        self.each = {decay: {name: self._own(value) for name, value in weights.items()} for decay in decays}

    def _own(self, value: Tensor) -> Tensor:
        """Return a copy of a tensor on the device of the averages."""
        return value.detach().to(self.device or value.device, copy=True)

    @property
    def first(self) -> Weights:
        """The average of the first decay."""
        return next(iter(self.each.values()))

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], taken: int) -> None:
        """Move the averages towards the weights, and copy what is no floating-point number.

        Args:
            weights: The present ones.
            taken: The steps taken; a decay is at most (1 + taken) / (10 + taken), so that an average forgets its
                random start.
        """
        names = [name for name, value in weights.items() if value.is_floating_point()]
        values = [weights[name].to(self.device or weights[name].device) for name in names]
        for decay, average in self.each.items():
            decay = min(decay, (1 + taken) / (10 + taken))
            torch._foreach_lerp_([average[name] for name in names], values, 1.0 - decay)
            for name in weights.keys() - set(names):
                average[name].copy_(weights[name])

    def state(self) -> dict[str, object]:
        """Return the averages as part of a run's state: `average`, the first, and `averages`, the others by decay."""
        _, *others = self.each.items()
        return {"average": self.first, **({"averages": dict(others)} if others else {})}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take what `state` returned, where the same decays may have stood in another order, and decays may be strings.

        Raises:
            KeyError: The state lacks the average of a decay.
        """
        others = {float(decay): average for decay, average in state.get("averages", {}).items()}
        first = [decay for decay in self.each if decay not in others][:1]
        kept = {**dict.fromkeys(first, state["average"]), **others}
        for decay, average in self.each.items():
            for name, value in average.items():
                value.copy_(kept[decay][name])

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors of all averages."""
        for average in self.each.values():
            yield from average.values()
