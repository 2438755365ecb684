"""Engines by component, opened when they are needed, or soon before."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from threading import Thread

from .specs import Engine


class Engines(Mapping[str, Engine]):
    """Engines by component, each opened when it is first asked for; not sooner where they `take_turns`."""

    def __init__(self, makers: Mapping[str, Callable[[], Engine]], *, take_turns: bool = False) -> None:
        self._makers, self._made, self.take_turns = makers, dict[str, Future[Engine]](), take_turns

    @classmethod
    def of(cls, engines: Mapping[str, Engine]) -> "Engines":
        """Those that are there."""
        return cls({name: partial(engines.__getitem__, name) for name in engines})

    def __getitem__(self, name: str) -> Engine:
        if name not in self._made:
            make, self._made[name] = self._makers[name], Future()
            _open(make, self._made[name])
        try:
            return self._made[name].result()
        except BaseException:
            del self._made[name]  # whoever asks again may have mended it
            raise

    def open_soon(self, names: Iterable[str]) -> None:
        """Begin to open some, at the same time, while the caller goes on. What goes wrong is raised when one is asked
        for.
        """
        for name in () if self.take_turns else names:
            if name in self._makers and name not in self._made:
                self._made[name] = Future()
                Thread(target=_open, args=(self._makers[name], self._made[name]), name=f"open {name}").start()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def close(self) -> None:
        """Free those that were opened."""
        for made in self._made.values():
            if made.exception() is None:
                made.result().close()
        self._made.clear()


def _open(make: Callable[[], Engine], made: Future[Engine]) -> None:
    try:
        made.set_result(make())
    except BaseException as error:  # raised again by whoever asks
        made.set_exception(error)
