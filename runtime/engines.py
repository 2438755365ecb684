"""Engines by component, opened when they are needed."""

from collections.abc import Callable, Iterator, Mapping

from .specs import Engine


class Engines(Mapping[str, Engine]):
    """Engines by component, each opened when it is first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Engine]]) -> None:
        self._makers, self._made = makers, dict[str, Engine]()

    def __getitem__(self, name: str) -> Engine:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def close(self) -> None:
        """Free those that were opened."""
        for engine in self._made.values():
            engine.close()
        self._made.clear()
