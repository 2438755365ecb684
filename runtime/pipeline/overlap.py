"""Work in stages, each of which goes on with the next item while those after it still have the one before."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

Stage = Callable[[Any], Any]


def in_stages(
    items: Iterable[Any], stages: Sequence[Stage], stop: Callable[[], object] = lambda: None
) -> Generator[Any, None, None]:
    """What the stages, one after another, make of items, in their order. Each stage is a thread of its own, so what it
    uses nobody else has to share. As many items are under way as there are stages; so far it reads ahead.

    What goes wrong is raised in its item's place, and what came after it is dropped; what goes wrong in `items` is
    raised after all that came before. Who stops early waits for what is
    at work, no more; `stop` is called before, to tell it.
    """
    threads = [ThreadPoolExecutor(1, f"stage {number}") for number, _ in enumerate(stages)]
    under_way, ended = deque[Future[Any]](), deque[Exception]()
    try:
        for item in _until_it_fails(items, ended):
            given = Future[Any]()
            given.set_result(item)
            for thread, stage in zip(threads, stages, strict=True):
                given = thread.submit(partial(_run, stage, given))
            under_way.append(given)
            if len(under_way) > len(stages) - 1:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
        if ended:
            raise ended.pop()
    finally:
        stop()
        for thread in threads:
            thread.shutdown(wait=False, cancel_futures=True)
        for thread in threads:
            thread.shutdown()


def _until_it_fails(items: Iterable[Any], ended: deque[Exception]) -> Iterator[Any]:
    """Pass items on; an exception that ends them is put aside."""
    try:
        yield from items
    except Exception as error:
        ended.append(error)


def one_by_one(items: Iterable[Any], stages: Sequence[Stage]) -> Iterator[Any]:
    """The results of `in_stages`, without threads."""
    for item in items:
        for stage in stages:
            item = stage(item)
        yield item


def _run(stage: Stage, given: Future[Any]) -> Any:
    return stage(given.result())
