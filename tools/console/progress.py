"""Progress of long commands: a bar on a terminal, a line every ten seconds in a log."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
console = Console(stderr=True)
LOG_EVERY = 10.0  # seconds, where there is no terminal


def watched(items: Iterable[T], total: int, describe: Callable[[T], str], *, start: int = 0) -> Iterator[T]:
    """Yield the items and show how many of `total` are done; `describe(item)` is the text beside the bar."""
    if not console.is_terminal:
        last = time.monotonic()
        for done, item in enumerate(items, start + 1):
            yield item
            if time.monotonic() - last >= LOG_EVERY or done == total:
                last = time.monotonic()
                console.print(f"{done}/{total} {describe(item)}", highlight=False)
        return
    columns = (
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, completed=start)
        for item in items:
            yield item
            bar.update(task, advance=1, description=describe(item))


@contextlib.contextmanager
def telling(text: str) -> Iterator[Callable[[str], None]]:
    """Give a function that shows what long work is doing now: beside a spinner, or as lines of a log."""
    with console.status(text) as status:
        last = time.monotonic()

        def tell(now: str) -> None:
            nonlocal last
            status.update(now)
            if not console.is_terminal and time.monotonic() - last >= LOG_EVERY:
                last = time.monotonic()
                console.print(now, highlight=False, markup=False)

        yield tell
