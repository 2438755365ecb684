"""Load the batches of a stream: threads decode the images of the next one while the network computes."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from ldmrt.runtime.errors import LdmrtError

from .captioned import Captioned, Grouped, Key, Pixels, Sample

TRIES = 100  # images in a row that may be unreadable
Wanted = Callable[[Sample], bool]


class Batches:
    """Decodes the samples of each step.

    An unreadable image stops the run; with `skip_unreadable` the next of the stream takes its place, so that a resumed
    run takes the same steps, and `skipped` says why, by sample.
    """

    def __init__(
        self,
        data: Captioned,
        seed: int,
        size: int,
        *,
        skip_unreadable: bool = False,
        wanted: Wanted = lambda _: True,
        taken: slice = slice(None),
    ) -> None:
        """Open the stream that `seed` names.

        Args:
            data: The captioned images.
            seed: Names the stream.
            size: Samples a batch; batches of grouped data may have fewer.
            skip_unreadable: Whether unreadable images are skipped; otherwise they are an `LdmrtError`.
            wanted: Tells whether the image of a sample is needed; others are not decoded.
            taken: Which samples of each batch are loaded; another process loads the others.
        """
        self.data, self.seed, self.size, self.wanted = data, seed, size, wanted
        self.skip_unreadable, self.taken = skip_unreadable, taken
        self.count = 0  # samples of the present batch, also those that are not loaded
        self.skipped: dict[Key, str] = {}
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
        self._step = -1
        self._samples: list[Sample] = []
        self._decoded: dict[Key, Future[Pixels]] = {}

    def prepare(self, step: int) -> None:
        """Begin to decode the images of a step."""
        self._step = step
        indices: Sequence[int] = range(step * self.size, (step + 1) * self.size)
        if isinstance(self.data, Grouped):
            indices = self.data.indices(self.seed, step, self.size)
        self.count = len(indices)
        self._samples = [replace(self.data.draw(self.seed, index), index=index) for index in indices[self.taken]]
        self._decoded = {
            sample.key: self._pool.submit(getattr, sample, "image")
            for sample in {sample.key: sample for sample in self._samples}.values()
            if callable(sample.source) and self.wanted(sample)
        }

    def __call__(self, step: int) -> list[Sample]:
        """Return the samples of a step; the images that are wanted are decoded.

        One that takes the place of another has the index of that one.
        """
        if step != self._step:
            self.prepare(step)
        return [replace(self._decode(sample, sample.index), index=sample.index) for sample in self._samples]

    def _decode(self, sample: Sample, index: int, tries: int = TRIES) -> Sample:
        """Return a sample with its image decoded, or the first readable one that follows it in the stream."""
        try:
            if sample.key in self._decoded:
                return replace(sample, source=self._decoded[sample.key].result())
            if callable(sample.source) and self.wanted(sample):
                return replace(sample, source=sample.image)
            return sample
        except LdmrtError as error:
            if not self.skip_unreadable or tries == 1:
                raise error.as_kind(LdmrtError, "repair the file, or --on-bad skip") from None
            self.skipped[sample.key] = str(error)
        following = self.data.after(index) if isinstance(self.data, Grouped) else index + 1
        return self._decode(self.data.draw(self.seed, following), following, tries - 1)
