"""Engines by component, opened when they are needed, or soon before."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import Lock, RLock, Thread
from typing import Protocol, runtime_checkable

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Engine


@runtime_checkable
class Unloadable(Protocol):
    """An engine that opens its network anew after `free`."""

    def free(self) -> None:
        """Free the network until the next call."""


class LazyEngines(Mapping[str, Engine]):
    """Engines by component, each opened by the first caller that asks for it. Several threads may ask at once."""

    def __init__(self, makers: Mapping[str, Callable[[], Engine]], *, take_turns: bool = False) -> None:
        """Hold what opens each engine.

        Args:
            makers: Opens the engine of each component.
            take_turns: The engines do not fit into memory together. `open_soon` then opens nothing, and a request
                holds `turn` while it runs, so that requests do not close each other's engines.
        """
        self._makers, self._opened, self.take_turns = makers, dict[str, Future[Engine]](), take_turns
        self.turn: AbstractContextManager[object] = RLock() if take_turns else nullcontext()
        self._changing, self._closed = Lock(), False

    @classmethod
    def of(cls, engines: Mapping[str, Engine]) -> "LazyEngines":
        """Hold engines that are already open, by component."""
        return cls({name: partial(engines.__getitem__, name) for name in engines})

    def replaced(self, others: Mapping[str, Engine], without: Collection[str] = ()) -> "LazyEngines":
        """Return these engines with others in the place of some, each opened when it is asked for.

        Args:
            others: Those that stand for engines of the same names.
            without: The names of engines that are left out.
        """
        owners = {name: others if name in others else self for name in self if name not in without}
        makers = {name: partial(owner.__getitem__, name) for name, owner in owners.items()}
        return LazyEngines(makers, take_turns=self.take_turns)

    def __getitem__(self, name: str) -> Engine:
        """Return the engine of a component, opened if it is not; a failure to open it is raised to every caller."""
        make = self._makers[name]
        with self._changing:
            if self._closed:
                raise LdmrtError("pipeline", "it is closed", hint="open the bundle again")
            first = name not in self._opened
            future = self._opened.setdefault(name, Future())
        if first:
            _open(make, future)
        try:
            return future.result()
        except BaseException:
            with self._changing:  # a later caller tries again, as the cause may be gone
                if self._opened.get(name) is future and future.done() and future.exception() is not None:
                    del self._opened[name]
            raise

    def open_soon(self, names: Iterable[str]) -> None:
        """Begin to open engines, each in a thread of its own; a failure is raised when the engine is asked for."""
        for name in () if self.take_turns else names:
            with self._changing:
                if self._closed or name not in self._makers or name in self._opened:
                    continue
                self._opened[name] = future = Future[Engine]()
            Thread(target=_open, args=(self._makers[name], future), name=f"open {name}").start()

    def __contains__(self, name: object) -> bool:
        """Tell whether a component can be opened, without opening it."""
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all components."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Return the number of components."""
        return len(self._makers)

    def unload(self) -> None:
        """Free the engines that were opened; a later caller opens them again. None may run meanwhile."""
        with self._changing:
            opened = {} if self._closed else dict(self._opened)
        for name, future in opened.items():
            if future.exception() is not None:
                continue
            engine = future.result()
            if isinstance(engine, Unloadable):
                engine.free()
            else:
                engine.close()
                with self._changing:
                    del self._opened[name]

    def close(self) -> None:
        """Free the engines that were opened, each once; none is opened again."""
        with self._changing:
            self._closed = True
            opened, self._opened = self._opened, {}
        for future in opened.values():
            if future.exception() is None:
                future.result().close()


def _open(make: Callable[[], Engine], future: Future[Engine]) -> None:
    """Open an engine and complete its future, by an exception where it cannot be opened."""
    try:
        future.set_result(make())
    except BaseException as error:
        future.set_exception(error)
