"""Join the calls that several requests make of a network into few calls of more rows.

Each request denoises in a thread of its own, as if it were alone, and its calls of the network wait here. One thread
runs them: as many as fit of one size in one call, each row with its own time and conditioning. So requests with other
samplers, steps, guidance and prompts share batches, and join and leave them at any row.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread

import numpy as np

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Arrays, Engine

from .lanes import Lane, Lanes

# How long a batch waits for the requests of its size that are between two rows, as a share of the last call's time: a
# call without one of them takes nearly as long, and it would have to run once more.
PATIENCE = 0.25
LEAST_PATIENCE = 0.002  # seconds: a thread that was woken needs as long to compute a sampler's row


class Stopping(LdmrtError):
    """The service takes no more requests and ends."""

    def __init__(self) -> None:
        """Say so."""
        super().__init__("serve", "it is being stopped")


@dataclass(frozen=True)
class Batch:
    """Describes a call that has run, for measurements.

    Attributes:
        lane: The lane that it belongs to.
        calls: How many requests' calls were joined in it.
        rows: How many rows it had.
        seconds: How long it took.
    """

    lane: Lane
    calls: int
    rows: int
    seconds: float


@dataclass(eq=False)
class Call:
    """Holds a call that waits."""

    engine: Engine
    arrays: Arrays
    alike: Hashable  # calls of a lane with equal values can be joined; None where this one has to run alone
    since: float
    outputs: "Future[Arrays]" = field(default_factory=Future)

    @property
    def rows(self) -> int:
        """The rows of the call."""
        return len(self.arrays["timestep"])


@dataclass(eq=False)
class Seat:
    """The place of one request in a lane, from its first row to its last.

    Attributes:
        lane: The lane.
        waiting: The call that waits, if one does.
        last: What its last call had in common with those it could be joined with.
    """

    dispatcher: "Dispatcher"
    lane: Lane
    waiting: Call | None = None
    last: Hashable = None

    def run(self, engine: Engine, arrays: Arrays, alike: Hashable) -> Arrays:
        """Run an engine, together with others' calls that are alike; returns the outputs of these rows.

        Raises:
            Stopping: The dispatcher is closed.
            LdmrtError: The engine refuses the arrays.
        """
        return self.dispatcher.run(self, engine, arrays, alike)

    def leave(self) -> None:
        """Give the place up; a second call does nothing."""
        self.dispatcher.leave(self)


class Dispatcher:
    """Runs the calls of all requests in one thread, those of equal size joined.

    Attributes:
        closed: Whether it takes no more calls.
    """

    def __init__(
        self,
        note: Callable[[Batch], object] = lambda batch: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start the thread.

        Args:
            note: Called after each call that has run, in the thread.
            clock: Tells the time in seconds.
        """
        self._note, self._clock = note, clock
        self._changed, self.closed = Condition(), False
        self._seats: dict[Lane, list[Seat]] = {}
        self._lanes = Lanes()
        self._until = dict[Lane, float]()  # when a lane's next batch no longer waits for those between two rows
        self._thread = Thread(target=self._work, name="dispatcher", daemon=True)
        self._thread.start()

    def take_seat(self, lane: Lane) -> Seat:
        """Return a place in a lane for a request that is about to call its network."""
        with self._changed:
            seat = Seat(self, lane)
            self._seats.setdefault(lane, []).append(seat)
            self._lanes.open(lane)
            return seat

    def leave(self, seat: Seat) -> None:
        """See `Seat.leave`."""
        with self._changed:
            seats = self._seats.get(seat.lane, [])
            if seat in seats:
                seats.remove(seat)
                if not seats:
                    del self._seats[seat.lane]
                    self._lanes.close(seat.lane)
                    self._until.pop(seat.lane, None)
                self._changed.notify_all()

    def run(self, seat: Seat, engine: Engine, arrays: Arrays, alike: Hashable) -> Arrays:
        """See `Seat.run`."""
        call = Call(engine, arrays, alike, self._clock())
        with self._changed:
            if self.closed:
                raise Stopping()
            seat.waiting, seat.last = call, alike
            self._changed.notify_all()
        return call.outputs.result()

    def close(self) -> None:
        """End the thread after the call that runs; calls that wait raise `Stopping`."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self._thread.join()
        for seats in self._seats.values():
            for seat in seats:
                if seat.waiting is not None:
                    seat.waiting.outputs.set_exception(Stopping())
                    seat.waiting = None

    def _work(self) -> None:
        """Run one batch after another."""
        while True:
            with self._changed:
                while True:
                    if self.closed:
                        return
                    lane, calls, wait = self._next()
                    if lane is not None and calls:
                        break
                    self._changed.wait(wait)
            before = self._clock()
            run_joined(calls)
            ended = self._clock()
            with self._changed:
                self._lanes.charge(lane, ended - before)
                self._until[lane] = ended + max(LEAST_PATIENCE, PATIENCE * (ended - before))
            self._note(Batch(lane, len(calls), sum(call.rows for call in calls), ended - before))

    def _next(self) -> tuple[Lane | None, list[Call], float | None]:
        """Take the calls that run next, of the lane that is furthest behind; none, and how long to wait for some."""
        for lane in self._lanes.in_order():
            chosen, complete = self._fitting(lane)
            left = self._until.get(lane, 0.0) - self._clock()
            if not complete and left > 0:
                return lane, [], left
            if chosen:
                for seat in self._seats[lane]:
                    if seat.waiting in chosen:
                        seat.waiting = None
                return lane, chosen, None
        return None, [], None

    def _fitting(self, lane: Lane) -> tuple[list[Call], bool]:
        """Return the calls of a lane that can be one, and whether none that is between two rows could join them.

        The call that has waited longest is among them; the others are those of the earliest seats.
        """
        waiting = [seat.waiting for seat in self._seats[lane] if seat.waiting is not None]
        if not waiting:
            return [], False
        first = min(waiting, key=lambda call: call.since)
        if first.alike is None:
            return [first], True
        chosen, rows, most = [first], first.rows, lane.most
        for call in waiting:
            if call is first or call.alike != first.alike:
                continue
            if rows + call.rows > most:
                return chosen, True
            chosen.append(call)
            rows += call.rows
        absent = any(seat.waiting is None and seat.last == first.alike for seat in self._seats[lane])
        return chosen, rows >= most or not absent


def run_joined(calls: Sequence[Call]) -> None:
    """Run calls that are alike as one, and give each its rows.

    Where that fails each runs alone, so that one request's error is its own.
    """
    try:
        if len(calls) == 1:
            calls[0].outputs.set_result(calls[0].engine(**calls[0].arrays))
            return
        outputs = calls[0].engine(**joined([call.arrays for call in calls]))
    except Exception as error:
        if len(calls) == 1:
            calls[0].outputs.set_exception(error)
            return
        for call in calls:
            run_joined([call])
        return
    begin = 0
    for call in calls:
        rows = slice(begin, begin + call.rows)
        call.outputs.set_result({name: array[rows] for name, array in outputs.items()})
        begin = rows.stop


def joined(calls: Sequence[Arrays]) -> Arrays:
    """Return the arrays of several calls as those of one: their rows one after another."""
    first, *_ = calls
    return {name: np.concatenate([arrays[name] for arrays in calls]) for name in first}


def alike(engine: Engine, arrays: Arrays) -> Hashable:
    """Return what calls that can be joined have in common; None where a call has to run alone.

    Rows can be joined where every input and output has an axis of them, of one size.
    """
    by_row = all(spec.shape and isinstance(spec.shape[0], str) for spec in (*engine.inputs, *engine.outputs))
    rows = len(arrays["timestep"])
    if not by_row or any(array.ndim == 0 or len(array) != rows for array in arrays.values()):
        return None
    shapes: list[tuple[str, str, tuple[int, ...]]] = sorted(
        (name, array.dtype.str, array.shape[1:]) for name, array in arrays.items()
    )
    return id(engine), tuple(shapes)
