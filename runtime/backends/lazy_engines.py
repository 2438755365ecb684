"""Engines by component, opened when they are needed, or soon before."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import Lock, RLock, Thread

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Engine


class LazyEngines(Mapping[str, Engine]):
    """Engines by component, each opened when it is first asked for; not sooner where they `take_turns`. Several threads
    may ask at once. Who runs a request where they take turns holds `turn`, so that requests do not open each other's
    engines anew.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Engine]], *, take_turns: bool = False) -> None:
        self._makers, self._made, self.take_turns = makers, dict[str, Future[Engine]](), take_turns
        self.turn: AbstractContextManager[object] = RLock() if take_turns else nullcontext()
        self._changing, self._closed = Lock(), False

    @classmethod
    def of(cls, engines: Mapping[str, Engine]) -> "LazyEngines":
        """Hold engines that are already open, by component."""
        return cls({name: partial(engines.__getitem__, name) for name in engines})

    def __getitem__(self, name: str) -> Engine:
        make = self._makers[name]
        with self._changing:
            if self._closed:
                raise LdmrtError("pipeline", "it is closed", hint="open the bundle again")
            first = name not in self._made
            made = self._made.setdefault(name, Future())
        if first:
            _open(make, made)
        try:
            return made.result()
        except BaseException:
            with self._changing:  # whoever asks again may have mended it
                if self._made.get(name) is made and made.done() and made.exception() is not None:
                    del self._made[name]
            raise

    def open_soon(self, names: Iterable[str]) -> None:
        """Begin to open some, at the same time, while the caller goes on. What goes wrong is raised when one is asked
        for.
        """
        for name in () if self.take_turns else names:
            with self._changing:
                if self._closed or name not in self._makers or name in self._made:
                    continue
                self._made[name] = made = Future[Engine]()
            Thread(target=_open, args=(self._makers[name], made), name=f"open {name}").start()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def close(self) -> None:
        """Free those that were opened, once; none is opened again."""
        with self._changing:
            self._closed = True
            opened, self._made = self._made, {}
        for made in opened.values():
            if made.exception() is None:
                made.result().close()


def _open(make: Callable[[], Engine], made: Future[Engine]) -> None:
    try:
        made.set_result(make())
    except BaseException as error:  # raised again by whoever asks
        made.set_exception(error)
