"""Errors and warnings as other processes, and people, get them."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from ldmrt.runtime import BundleError, EngineNotFound, InvalidRequest, LdmrtError, LdmrtWarning, NotFinite
from ldmrt.runtime.errors import LONGEST, MOST_SHOWN, first_line


class Particular(LdmrtError):
    """Takes other arguments than the class that it is of."""

    def __init__(self, code: int) -> None:
        super().__init__("unet", f"failed with {code}", hint="again")
        self.code = code


def with_attributes(error: BaseException) -> Any:
    error.component = "unet"  # type: ignore[attr-defined]
    error.__dict__["cases"] = [1, 2]
    return error


RAISED: list[Callable[[], BaseException]] = [
    lambda: LdmrtError("unet", "no input x"),
    lambda: LdmrtError("unet", "wrong", expected=(1, 2), found=lambda: 3, hint="ldmrt export"),  # no lambda pickles
    lambda: EngineNotFound("vae_decoder", "no engine", hint="ldmrt build"),
    lambda: InvalidRequest("request", "invalid strength", expected="0 to 1", found=2),
    lambda: BundleError("bundle", "missing file"),
    lambda: NotFinite("unet", "latents are not finite after row 3", hint="ldmrt verify"),
    lambda: Particular(7),
    lambda: with_attributes(LdmrtError("unet", "wrong", found=ValueError("of another library"))),
    lambda: LdmrtWarning("the prompt was cut"),
    lambda: with_attributes(LdmrtWarning("the prompt was cut", 3)),
]
WAYS: dict[str, Callable[[Any], Any]] = {
    **{f"pickle {n}": lambda one, n=n: pickle.loads(pickle.dumps(one, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("make", RAISED)
@pytest.mark.parametrize("way", WAYS)
def test_every_error_and_warning_can_be_sent(make: Callable[[], BaseException], way: str) -> None:
    one = make()
    other = WAYS[way](one)
    assert type(other) is type(one)
    assert other is not one
    assert (str(other), other.args) == (str(one), one.args)
    assert vars(other) == vars(one)


def test_every_public_class_was_tried() -> None:
    tried = {type(make()) for make in RAISED}
    known = {LdmrtError, *LdmrtError.__subclasses__(), LdmrtWarning, *LdmrtWarning.__subclasses__()}
    assert {one for one in known if one.__module__.startswith("ldmrt.runtime")} <= tried


def test_a_worker_of_a_pool_can_raise_one() -> None:
    """An error that does not pickle leaves the parent waiting for ever."""
    from multiprocessing import get_context

    with get_context("spawn").Pool(1) as pool, pytest.raises(LdmrtError, match="'nonsense'; expected ddim"):
        pool.apply_async(_fails).get(timeout=120)


def _fails() -> None:
    from ldmrt.runtime import plan_from_config

    plan_from_config({}, 3, name="nonsense")


def test_a_message_is_never_long() -> None:
    prompt = "a cat " * 200_000
    error = LdmrtError("tokenizer", f"cannot read {prompt}", expected=prompt, found=prompt, hint=prompt)
    assert len(str(error)) < 5 * LONGEST
    assert error.found == prompt  # whoever handles it has all of it


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("", "ValueError()"),
        ("short", "short"),
        (
            "Class validation failed:\n    TypeError: Field 'a' has no b\n",
            "Class validation failed: TypeError: Field 'a' has no b",
        ),
    ],
)
def test_the_words_of_others_are_one_line(message: str, expected: str) -> None:
    assert first_line(ValueError(*[message] * bool(message))) == expected


def test_the_words_of_others_keep_both_ends() -> None:
    said = first_line(ValueError("what it was" + " and so on" * 1000 + " and the cause"))
    assert said.startswith("what it was and so on")
    assert said.endswith("and so on and the cause")
    assert len(said) <= MOST_SHOWN
