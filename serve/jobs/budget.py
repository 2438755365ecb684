"""Bound what callers may hold at once: bytes of memory, or numbers of requests."""

from collections import Counter
from threading import Lock


class Budget:
    """Counts what each owner holds, of as much as there is. Threads may share it."""

    def __init__(self, most: int) -> None:
        """Begin with nothing held; at most so much is, or any amount where it is 0."""
        self._most, self._held, self._changing = most, Counter[str](), Lock()

    def take(self, owner: str, amount: int) -> bool:
        """Count an amount as held by an owner, or return False and count nothing if that is too much."""
        with self._changing:
            if self._most and self._held[owner] + amount > self._most:
                return False
            self._held[owner] += amount
            return True

    def give_back(self, owner: str, amount: int) -> None:
        """Count an amount as no longer held."""
        with self._changing:
            self._held[owner] -= amount
            if not self._held[owner]:
                del self._held[owner]

    @property
    def held(self) -> int:
        """What all owners hold."""
        with self._changing:
            return sum(self._held.values())
