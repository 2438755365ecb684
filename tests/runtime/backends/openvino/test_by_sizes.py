"""Networks for fixed sizes: opened when sizes are worth one, few at a time, and never under a call that runs."""

import threading
import time

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.backends.by_sizes import MOST, BySizes, Sizes, sizes_in
from ldmrt.runtime.tensors import TensorSpec

SMALL, LARGE, WIDE = {"batch": 1}, {"batch": 2}, {"batch": 3}


class Opener:
    """Opens strings, and notes them."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def __call__(self, sizes: Sizes | None) -> str:
        self.opened.append("any" if sizes is None else str(sizes["batch"]))
        return self.opened[-1]


def test_every_symbolic_dimension_has_a_size() -> None:
    specs = TensorSpec("x", "float32", ("batch", 4, "height/8")), TensorSpec("t", "float32", ("timesteps",))
    assert sizes_in(specs, {"x": (2, 4, 9), "t": (1,)}) == {"batch": 2, "height/8": 9, "timesteps": 1}


def test_sizes_are_worth_a_network_when_they_come_often_in_a_row() -> None:
    opener = Opener()
    networks = BySizes("unet", opener, after=3)
    asked = [SMALL, SMALL, LARGE, SMALL, SMALL, SMALL, SMALL, LARGE, SMALL]
    assert [networks.of(one) for one in asked] == ["any"] * 5 + ["1", "1", "any", "1"]
    assert opener.opened == ["any", "1"]
    never = BySizes("unet", Opener(), after=None)
    assert {never.of(SMALL) for _ in range(1000)} == {"any"}


def test_few_stay_open_those_that_were_used_last() -> None:
    opener = Opener()
    networks = BySizes("unet", opener)
    for one in (SMALL, LARGE, SMALL, WIDE, SMALL, LARGE):  # WIDE takes the place of LARGE, and LARGE that of WIDE
        networks.of(one)
    assert opener.opened == ["1", "2", "3", "2"]
    assert sorted(networks.close()) == ["1", "2"]
    assert MOST == 2


def test_what_is_open_already_is_used() -> None:
    opener = Opener()
    networks = BySizes("unet", opener, after=2)
    networks.add(LARGE, "kept")
    assert [networks.of(one) for one in (LARGE, SMALL, LARGE)] == ["kept", "any", "kept"]


def test_many_threads_open_a_network_once() -> None:
    opener = Opener()

    def slowly(sizes: Sizes | None) -> str:
        time.sleep(0.05)
        return opener(sizes)

    networks = BySizes("unet", slowly)
    threads = [threading.Thread(target=networks.of, args=(SMALL,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opener.opened == ["1"]


def test_a_lock_is_held_while_one_is_freed() -> None:
    lock, held = threading.RLock(), list[bool]()

    class Network:
        def __del__(self) -> None:
            held.append(lock._is_owned())  # type: ignore[attr-defined]

    networks = BySizes("unet", lambda _: Network(), freeing=lock)
    for one in (SMALL, LARGE, WIDE):
        networks.of(one)
    assert held == [True]


def test_none_is_opened_after_the_end() -> None:
    opener = Opener()
    networks = BySizes("unet", opener)
    networks.of(SMALL)
    assert networks.close() == ["1"]
    assert networks.close() == []
    with pytest.raises(LdmrtError, match="unet: its pipeline is closed\n  try: open the bundle again"):
        networks.of(LARGE)
    assert opener.opened == ["1"]
