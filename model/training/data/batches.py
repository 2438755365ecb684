"""Load the batches of a stream: threads decode the images of the next one while the network computes."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from ldmrt.runtime.errors import LdmrtError

from .captioned import Captioned, Grouped, Key, Pixels, Sample
from .regularisation import Regularisation

TRIES = 100  # images in a row that may be unreadable
Wanted = Callable[[Sample], bool]
Following = Callable[[int], tuple[Sample, int]]


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
        regularisation: Regularisation | None = None,
    ) -> None:
        """Open the stream that `seed` names.

        Args:
            data: The captioned images.
            seed: Names the stream.
            size: Samples a batch; batches of grouped data may have fewer.
            skip_unreadable: Whether unreadable images are skipped; otherwise they are an `LdmrtError`.
            wanted: Tells whether the image of a sample is needed; others are not decoded.
            taken: Which samples of each batch are loaded; another process loads the others.
            regularisation: Gives each sample a regularisation image beside it; None for none.
        """
        self.data, self.seed, self.size, self.wanted = data, seed, size, wanted
        self.skip_unreadable, self.taken, self.regularisation = skip_unreadable, taken, regularisation
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
        self._samples = list(map(self._draw, indices[self.taken]))
        beside = [sample.regularisation for sample in self._samples if sample.regularisation is not None]
        self._decoded = {
            sample.key: self._pool.submit(getattr, sample, "image")
            for sample in {sample.key: sample for sample in [*self._samples, *beside]}.values()
            if callable(sample.source) and self.wanted(sample)
        }

    def _draw(self, index: int) -> Sample:
        """Return a sample of the stream, with the regularisation image beside it."""
        sample = replace(self.data.draw(self.seed, index), index=index)
        if self.regularisation is None:
            return sample
        return replace(sample, regularisation=self.regularisation.beside(sample, self.seed, index))

    def __call__(self, step: int) -> list[Sample]:
        """Return the samples of a step; the images that are wanted are decoded.

        One that takes the place of another has the index of that one.
        """
        if step != self._step:
            self.prepare(step)
        return list(map(self._whole, self._samples))

    def _whole(self, sample: Sample) -> Sample:
        """Return a sample with its image and the one beside it decoded."""
        index, beside = sample.index, sample.regularisation
        if beside is not None:
            beside = self._decode(beside, index, lambda index: self._following_beside(sample, index))
        return replace(self._decode(sample, index, self._following), index=index, regularisation=beside)

    def _decode(self, sample: Sample, index: int, following: Following, tries: int = TRIES) -> Sample:
        """Return a sample with its image decoded, or the first readable one that follows it in its stream."""
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
        return self._decode(*following(index), following, tries - 1)

    def _following(self, index: int) -> tuple[Sample, int]:
        """Return the sample that takes the place of the one at `index`, and its own place."""
        following = self.data.after(index) if isinstance(self.data, Grouped) else index + 1
        return self.data.draw(self.seed, following), following

    def _following_beside(self, sample: Sample, index: int) -> tuple[Sample, int]:
        """Return the regularisation image that takes the place of the one at `index`, and its own place."""
        assert self.regularisation is not None
        return self.regularisation.beside(sample, self.seed, index + 1), index + 1
