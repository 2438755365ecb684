"""The search for islands, on components whose errors are known."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import pytest

from ldmrt.runtime.bundle.graphs import inside
from ldmrt.runtime.parity.islands import LEAST, MARGIN, find_islands, outermost

LIMIT = 0.1


@dataclass
class Known:
    """Modules that each add an error, and pairs that add one unless one island holds both."""

    errors: dict[str, float]
    pairs: dict[tuple[str, str], float] = field(default_factory=dict)
    always: float = 0.0  # what no island takes away
    measured: int = 0

    @property
    def paths(self) -> Sequence[str]:
        inner = {*self.errors, *(one for pair in self.pairs for one in pair)}
        return sorted({one.rsplit(".", depth)[0] for one in inner for depth in range(one.count(".") + 1)})

    def with_islands(self, islands: Collection[str]) -> float:
        return self.alone("", islands)

    def alone(self, path: str, islands: Collection[str]) -> float:
        self.measured += 1

        def together(*modules: str) -> bool:
            return any(all(inside(one, island) for one in modules) for island in islands)

        def narrow(module: str) -> bool:
            return path == "" or inside(module, path)

        own = [error for one, error in self.errors.items() if narrow(one) and not together(one)]
        joint = [
            error
            for pair, error in self.pairs.items()
            if any(map(narrow, pair)) and not together(*filter(narrow, pair))
        ]
        return self.always + sum(own) + sum(joint)

    def remaining(self, path: str) -> float:
        return self.always

    def gain(self, path: str, outer: str, islands: Collection[str]) -> float:
        return self.alone(outer, islands) - self.alone(outer, [*islands, path])


SMALL = {f"down.{i}.conv": 1e-3 for i in range(20)}


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        (Known(SMALL), []),  # 0.02 in all
        (Known(SMALL | {"up.0.norm": 0.2}), ["up.0.norm"]),  # the module itself, not the block around it
        (Known(SMALL | {"up.0.norm": 0.2, "mid.conv": 0.3}), ["down", "mid.conv", "up.0.norm"]),  # one, then two
        (Known(SMALL, {("mid.0.conv", "mid.0.norm"): 0.3}), ["mid.0"]),  # what one gives, the other takes: rounded
        (Known(SMALL | {"mid.0.conv": 0.2}, {("mid.0.conv", "mid.1.conv"): 0.3}), ["mid"]),
    ],
)
def test_the_smallest_modules_that_help(component: Known, expected: list[str]) -> None:
    found = find_islands(component, {}, LIMIT)
    assert sorted(found.islands) == expected
    assert found.before == Known(component.errors, component.pairs).with_islands([])
    assert found.left == component.with_islands(found.islands) <= LIMIT / MARGIN
    assert all(why.startswith("error: ") and why.endswith("of tolerance 0.1") for why in found.islands.values())


def test_many_that_err_a_little_are_raised_in_rounds() -> None:
    component = Known({f"block.{i}": 0.02 for i in range(40)})
    found = find_islands(component, {}, LIMIT)
    assert found.left <= LIMIT / MARGIN
    assert component.measured < 3 * 40  # not each of them with each other


def test_those_that_are_there_already_stay() -> None:
    component = Known(SMALL | {"up.0.norm": 0.2, "mid.conv": 0.3})
    found = find_islands(component, {"mid": "range"}, LIMIT)
    assert found.islands["mid"] == "range"
    assert sorted(found.islands) == ["mid", "up.0.norm"]
    assert found.before == pytest.approx(0.22)


def test_what_no_island_takes_away_is_left() -> None:
    found = find_islands(Known(SMALL | {"mid.conv": LEAST * LIMIT / 2}, always=0.3), {}, LIMIT)
    assert found.left > 0.3 > LIMIT


def test_none_is_added_where_it_holds_and_no_margin_can_be_had() -> None:
    found = find_islands(Known({"mid.conv": 0.02}, always=0.07), {}, LIMIT)
    assert found == ({}, pytest.approx(0.09), pytest.approx(0.09))
    found = find_islands(Known({"mid.conv": 0.04}, always=0.07), {}, LIMIT)  # it needs one, with or without a margin
    assert [*found.islands] == ["mid.conv"]
    assert found.left == pytest.approx(0.07)


def test_the_outermost_islands() -> None:
    assert outermost({"a.b": "x", "a": "y", "ab": "z"}) == {"a": "y", "ab": "z"}
    assert outermost({"a.b": "x", "": "y"}) == {"": "y"}
