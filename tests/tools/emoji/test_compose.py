"""What a picture and its caption are put together from."""

import numpy as np
import pytest

from ldmrt.tools.emoji.dataset import Emoji, Sprite, article, composite


def test_composite_equals_a_slow_twin() -> None:
    rng = np.random.default_rng(0)
    sprite = rng.integers(0, 256, (9, 7, 4), dtype=np.uint8)
    sprite[0, 0, 3], sprite[0, 1, 3] = 0, 255
    picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    expected = picture.copy()
    for y in range(9):
        for x in range(7):
            a = int(sprite[y, x, 3])
            for c in range(3):  # exact: 255 is odd, so no half is ever rounded
                mixed = int(sprite[y, x, c]) * a + int(picture[3 + y, 5 + x, c]) * (255 - a)
                expected[3 + y, 5 + x, c] = (2 * mixed + 255) // 510
    composite(sprite, picture, 3, 5)
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("red apple", "a red apple"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("ATM sign", "an ATM sign"),
        ("cherries", "cherries"),
        ("octopus", "an octopus"),
        ("glass of milk", "a glass of milk"),
        ("bread", "bread"),
        ("face with tears of joy", "a face with tears of joy"),
        ("money with wings", "money with wings"),
    ],
)
def test_article(label: str, said: str) -> None:
    assert article(label) == said


def test_prompt_names_everything() -> None:
    sprite = Sprite(0, "1f34e", "noto", "red apple", (), "food", "fruit")
    assert Emoji.prompt(sprite, "blue") == "a red apple, noto style, blue background"
