"""Run stages in threads: each goes on with the next item while the stage after it has the one before."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

Stage = Callable[[Any], Any]


def in_stages(
    items: Iterable[Any], stages: Sequence[Stage], stop: Callable[[], object] = lambda: None
) -> Generator[Any, None, None]:
    """Yield the items, each after all stages, in their order.

    Each stage is a thread of its own, so stages share nothing. As many items are under way as there are stages; so far
    it reads ahead. An error is raised in its item's place, and the items after it are dropped; an error of `items`
    itself is raised after all items before it. A caller that stops early waits for the stages that are at work, no
    more.

    Args:
        items: What the first stage takes.
        stages: Functions, each of which takes what the one before returns.
        stop: Called first where the caller stops early, so that stages can end sooner.
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
    """Yield items; an exception that ends them is put aside."""
    try:
        yield from items
    except Exception as error:
        ended.append(error)


def one_by_one(items: Iterable[Any], stages: Sequence[Stage]) -> Iterator[Any]:
    """Yield the results of `in_stages`, without threads."""
    for item in items:
        for stage in stages:
            item = stage(item)
        yield item


def _run(stage: Stage, given: Future[Any]) -> Any:
    return stage(given.result())
