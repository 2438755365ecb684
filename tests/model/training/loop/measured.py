"""The memory that PyTorch's profiler measures: the slow and obvious twin of what a plan says."""

from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile, record_function


def peak_of(act: Callable[[], object], then: Callable[[], object] = lambda: None) -> tuple[int, int]:
    """The most bytes that the allocator of the CPU has given while an act runs, and those after a second one."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = [act()]
        with record_function("then"):
            kept.append(then())
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    [begin] = [event.start_ns() for event in events if event.name() == "then"]
    found = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    first = list(accumulate(size for at, size in found if at < begin))
    return max(first), sum(size for _, size in found)
