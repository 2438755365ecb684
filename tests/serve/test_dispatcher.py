"""Calls of many threads are joined into few, and each gets what it would get alone."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.tensors import Arrays, TensorSpec
from ldmrt.serve.batching.dispatcher import Batch, Dispatcher, Seat, alike
from ldmrt.serve.batching.lanes import Lane, Lanes

from .conftest import Doubling, call

SMALL, LARGE = Lane("a", (2, 2), 8), Lane("a", (4, 4), 8)


@pytest.fixture
def batches() -> list[Batch]:
    return []


@pytest.fixture
def dispatcher(batches: list[Batch]) -> Iterator[Dispatcher]:
    made = Dispatcher(batches.append)
    yield made
    made.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as made:
        yield made


def run(seat: Seat, network: Doubling, arrays: Arrays) -> Arrays:
    return seat.run(network, arrays, alike(network, arrays))


def held(dispatcher: Dispatcher, network: Doubling, pool: ThreadPoolExecutor, lane: Lane = SMALL) -> Future[Arrays]:
    """Start a call that runs until `network.may_go_on`, so that those after it wait together."""
    network.begun.clear()
    network.may_go_on.clear()
    seat = dispatcher.take_seat(lane)
    first = pool.submit(run, seat, network, call(1, 0.0, lane.size[0]))
    assert network.begun.wait(30)
    first.add_done_callback(lambda _: seat.leave())
    return first


def waiting(seats: list[Seat]) -> None:
    """Return when every seat's call waits."""
    while any(seat.waiting is None for seat in seats):
        Event().wait(0.001)


def test_calls_that_wait_are_joined(
    dispatcher: Dispatcher, network: Doubling, pool: ThreadPoolExecutor, batches: list[Batch]
) -> None:
    """Each gets its own rows, whatever the times and the numbers of rows of the others."""
    held(dispatcher, network, pool)
    seats = [dispatcher.take_seat(SMALL) for _ in range(3)]
    calls = [call(rows, t) for rows, t in ((1, 3.0), (2, 5.0), (4, 7.0))]
    futures = [pool.submit(run, seat, network, one) for seat, one in zip(seats, calls, strict=True)]
    waiting(seats)
    network.may_go_on.set()
    for future, one in zip(futures, calls, strict=True):
        np.testing.assert_array_equal(future.result(30)["out_sample"], Doubling()(**one)["out_sample"])
    assert network.rows == [1, 7]
    assert [(batch.calls, batch.rows) for batch in batches] == [(1, 1), (3, 7)]


def test_no_call_has_more_rows_than_its_lane(
    dispatcher: Dispatcher, network: Doubling, pool: ThreadPoolExecutor
) -> None:
    """Those of earlier seats go first; one call of more rows runs alone."""
    held(dispatcher, network, pool)
    seats = [dispatcher.take_seat(SMALL) for _ in range(4)]
    futures = []
    for seat, rows in zip(seats, (5, 3, 1, 12), strict=True):
        futures.append(pool.submit(run, seat, network, call(rows, 0.0)))
        waiting(seats[: len(futures)])
    network.may_go_on.set()
    for seat, future in zip(seats, futures, strict=True):
        future.result(30)
        seat.leave()
    assert network.rows == [1, 8, 1, 12]


def test_other_shapes_and_other_networks_are_not_joined(
    dispatcher: Dispatcher, network: Doubling, pool: ThreadPoolExecutor
) -> None:
    held(dispatcher, network, pool)
    other, wide = Doubling(), {**call(1, 1.0), "context": np.zeros((1, 77, 8), np.float32)}
    assert alike(network, call(1, 1.0)) == alike(network, call(4, 9.0))
    assert len({alike(network, call(1, 1.0)), alike(other, call(1, 1.0)), alike(network, wide)}) == 3
    seats = [dispatcher.take_seat(lane) for lane in (SMALL, SMALL, LARGE)]
    calls = [(network, call(1, 1.0)), (other, call(1, 1.0)), (network, call(1, 1.0, 4))]
    futures = [pool.submit(run, seat, *one) for seat, one in zip(seats, calls, strict=True)]
    waiting(seats)
    network.may_go_on.set()
    for future in futures:
        future.result(30)
    assert (network.rows, other.rows) == ([1, 1, 1], [1])


def test_a_network_without_an_axis_of_rows_runs_calls_one_by_one(network: Doubling) -> None:
    """Such as a U-Net that takes one timestep for the whole batch."""
    network.inputs = (network.inputs[0], TensorSpec("timestep", "float32", ()))  # type: ignore[assignment]
    assert alike(network, call(2, 1.0)) is None
    network.inputs = (network.inputs[0], TensorSpec("timestep", "float32", ("timesteps",)))
    assert alike(network, {**call(2, 1.0), "timestep": np.zeros(1, np.float32)}) is None


def test_an_error_is_that_of_its_own_request(
    dispatcher: Dispatcher, network: Doubling, pool: ThreadPoolExecutor
) -> None:
    """A call that fails among others does not fail them."""
    held(dispatcher, network, pool)
    seats = [dispatcher.take_seat(SMALL) for _ in range(3)]
    times = (1.0, -1.0, 2.0)
    futures = [pool.submit(run, seat, network, call(1, t)) for seat, t in zip(seats, times, strict=True)]
    waiting(seats)
    network.may_go_on.set()
    assert futures[0].result(30)["out_sample"][0, 0, 0, 0] == 1.0
    with pytest.raises(ValueError, match="a negative time"):
        futures[1].result(30)
    assert futures[2].result(30)["out_sample"][0, 0, 0, 0] == 2.0
    assert network.rows == [1, 3, 1, 1, 1]


def test_many_threads_join_and_leave(dispatcher: Dispatcher, network: Doubling, pool: ThreadPoolExecutor) -> None:
    """Of 24 requests with 1 to 24 rows each, in two sizes, every row is that of a call alone."""

    def request(number: int) -> bool:
        lane = (SMALL, LARGE)[number % 2]
        seat, right = dispatcher.take_seat(lane), True
        for row in range(number + 1):
            arrays = call(1 + number % 3, 100.0 * number + row, lane.size[0])
            found = run(seat, network, arrays)["out_sample"]
            right = right and bool((found == Doubling()(**arrays)["out_sample"]).all())
        seat.leave()
        return right

    assert all(pool.map(request, range(24)))
    rows = sum((1 + number % 3) * (number + 1) for number in range(24))
    assert sum(network.rows) == rows
    assert max(network.rows) <= SMALL.most
    assert len(network.rows) < rows / 2  # they were joined


def test_a_closed_dispatcher_refuses_calls(network: Doubling, pool: ThreadPoolExecutor) -> None:
    """Those that wait end in an error too, and the one that runs has its result."""
    dispatcher = Dispatcher()
    first = held(dispatcher, network, pool)
    seat = dispatcher.take_seat(SMALL)
    second = pool.submit(run, seat, network, call(1, 1.0))
    waiting([seat])
    closing = pool.submit(dispatcher.close)
    while not dispatcher.closed:
        Event().wait(0.001)
    network.may_go_on.set()
    closing.result(30)
    assert first.result(30)["out_sample"].shape == (1, 1, 2, 2)
    for late in (second.result, lambda _: run(seat, network, call(1, 1.0))):
        with pytest.raises(LdmrtError, match="serve: it is being stopped"):
            late(30)


def test_the_lane_that_has_had_the_least_is_next() -> None:
    """Calls of 1 and of 10 seconds get as much time each, and a lane that comes later has no credit."""
    lanes, turns = Lanes(), list[Lane]()
    for lane in (SMALL, LARGE):
        lanes.open(lane)
    for _ in range(110):
        lane = next(lanes.in_order())
        lanes.charge(lane, 10.0 if lane == LARGE else 1.0)
        turns.append(lane)
    assert (turns.count(SMALL), turns.count(LARGE)) == (100, 10)
    late = Lane("b", (2, 2), 8)
    lanes.open(late)
    for _ in range(22):
        lane = next(lanes.in_order())
        lanes.charge(lane, 10.0 if lane == LARGE else 1.0)
        turns.append(lane)
    assert 9 <= turns[110:].count(SMALL) <= 11  # not the 110 calls that would make up for the past
    lanes.close(LARGE)
    assert LARGE not in list(lanes.in_order())
