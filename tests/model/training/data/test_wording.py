"""Captions that change from sample to sample: tags in any order, a prefix, alternatives."""

from collections import Counter
from itertools import permutations

from ldmrt.model.training.data.wording import Wording


def test_the_longest_of_the_alternatives_is_taken_to_count() -> None:
    caption = "a {red|{green|bluish}} cat"
    assert Wording(wildcards=True, prefix="sks").longest(caption) == "sks a bluish cat"
    assert Wording(prefix="sks").longest(caption) == f"sks {caption}"


def test_captions_stay_as_they_are_by_default() -> None:
    for caption in ("a, b ,c", " {a|b} ", ""):
        assert Wording()(caption, 0, 0) == caption


def test_every_order_of_the_tags_is_as_likely() -> None:
    found = Counter(Wording(shuffle=True)("a,b , c,,", 7, i) for i in range(6000))
    assert set(found) == {", ".join(order) for order in permutations("abc")}
    assert all(abs(count - 1000) < 4 * (6000 * 5 / 36) ** 0.5 for count in found.values())  # four standard deviations


def test_the_first_tags_are_kept() -> None:
    found = {Wording(shuffle=True, keep=2)("a, b, c, d", 7, i) for i in range(50)}
    assert found == {"a, b, c, d", "a, b, d, c"}
    assert Wording(shuffle=True, keep=9)("a, b", 0, 0) == "a, b"


def test_the_prefix_comes_last_and_is_not_shuffled() -> None:
    found = {Wording(shuffle=True, prefix="sks, photo,")("a, b", 0, i) for i in range(50)}
    assert found == {"sks, photo, a, b", "sks, photo, b, a"}
    assert Wording(prefix="sks")("", 0, 0) == "sks"


def test_alternatives_and_alternatives_in_them() -> None:
    found = Counter(Wording(wildcards=True)("{a|b {c|d}} {x} e", 0, i) for i in range(4000))
    assert set(found) == {"a {x} e", "b c {x} e", "b d {x} e"}
    assert abs(found["a {x} e"] - 2000) < 4 * 1000**0.5
    assert Wording(wildcards=True)("{a|a}, {}", 0, 0) == "a, {}"


def test_a_sample_has_the_same_words_whenever_it_is_drawn() -> None:
    words = Wording(shuffle=True, wildcards=True)
    first = [words("a, {b|c}, d, e", 3, i) for i in range(20)]
    assert first == [words("a, {b|c}, d, e", 3, i) for i in reversed(range(20))][::-1]
    assert first != [words("a, {b|c}, d, e", 4, i) for i in range(20)]
