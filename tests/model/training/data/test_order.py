"""The order of a stream: a permutation an epoch, computed at any place."""

from collections import Counter

import pytest

from ldmrt.model.training.data.order import entry


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40, 64, 65, 1000])
def test_every_epoch_holds_every_entry_once(count: int) -> None:
    for epoch in (0, 1, 7, 10**9):
        assert sorted(entry(3, epoch * count + i, count) for i in range(count)) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(entry(seed, epoch * 40 + i, 40) for i in range(40)) for seed in (0, 1, 2**32) for epoch in range(20)
    }
    assert len(orders) == 60


def test_every_order_of_three_is_as_likely() -> None:
    orders = Counter(tuple(entry(seed, i, 3) for i in range(3)) for seed in range(3000))
    assert len(orders) == 6
    assert all(400 < times < 600 for times in orders.values())  # of 500; the standard deviation is 20


def test_every_entry_is_as_often_the_first() -> None:
    first = Counter(entry(0, epoch * 40, 40) for epoch in range(8000))
    assert len(first) == 40
    assert all(130 < times < 270 for times in first.values())  # of 200; the standard deviation is 14
