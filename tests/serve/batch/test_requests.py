"""A line holds what the options of `ldmrt generate` do, and one that has failed can be read again."""

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import InvalidRequest, LdmrtError, Request
from ldmrt.serve.batch.lines import Line
from ldmrt.serve.batch.requests import WORDS, Reader, as_line
from ldmrt.tools.commands.generate import generate


def line(text: str | dict[str, Any], number: int = 1) -> Line:
    return Line(number, text if isinstance(text, str) else json.dumps(text), "")


def test_words_are_those_of_generate() -> None:
    """Its options that are fields of a request: prompts are its arguments, and --set has pairs."""
    names = {param.name for param in generate.params} | {"prompt", "scheduler_settings"}
    assert set(WORDS) <= names


def test_a_line_wins_over_the_options() -> None:
    reader = Reader(True, {"steps": 30, "guidance": 2.0, "count": 2, "seed": 10})
    request, values = reader.request(line({"prompt": "a fox", "steps": 5, "num_images_per_prompt": 3}, 4))
    assert request == Request(
        "a fox", num_inference_steps=5, guidance_scale=2.0, num_images_per_prompt=3, seed=10 + 3 * 2
    )
    assert values == {"prompt": "a fox", "steps": 5, "guidance": 2.0, "count": 3, "seed": 16}
    assert reader.request(line({"prompt": "a fox", "seed": 3}, 4))[0].seed == 3
    assert reader.request(line({"prompt": "a fox", "seed": None, "error": "it failed"}, 4))[0].seed == 16


def test_seeds_are_those_of_generate_with_many_prompts() -> None:
    """Its first image has --seed, and the next ones count up."""
    whole = Request(["a", "b", "c"], num_images_per_prompt=4, seed=7)
    reader = Reader(False, {"count": 4, "seed": 7})
    requests = [reader.request(line(text, number))[0] for number, text in enumerate("abc", 1)]
    assert [seed for request in requests for seed in request.seeds] == whole.seeds


def test_a_text_is_a_prompt() -> None:
    request, _ = Reader(False, {"steps": 3}).request(line(' {"prompt": "a fox"}'))
    assert request == Request(' {"prompt": "a fox"}', num_inference_steps=3)


def test_values_by_stage() -> None:
    given = {"prompt": "a", "steps": {"base": 5, "upscale": 1}, "scheduler": {"base": "heun"}}
    request, _ = Reader(True, {"steps": 30, "scheduler": {"upscale": "ddim"}}).request(line(given))
    assert request.stages == {
        "base": {"num_inference_steps": 5, "scheduler": "heun"},
        "upscale": {"num_inference_steps": 1},
    }
    request, _ = Reader(True, {"steps": {"base": 5}}).request(line({"prompt": "a", "steps": 7}))
    assert (request.num_inference_steps, request.stages) == (7, {})


def test_images_are_paths(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path := tmp_path / "a.png")
    given = {"prompt": "a", "image": str(path), "mask": [str(path)], "controls": {"canny": [str(path), 0.5]}}
    request, _ = Reader(True).request(line(given))
    assert (request.image, request.mask_image) == (str(path), [str(path)])
    assert request.controls == {"canny": (str(path), 0.5)}
    request, _ = Reader(True).request(line({"prompt": "a", "controls": {"canny": str(path)}}))
    assert request.controls == {"canny": (str(path), 1.0)}
    moved = {"prompt": "a", "image": "a.png", "mask": ["a.png"], "controls": {"canny": ["a.png", 0.5]}}
    request, values = Reader(True, folder=tmp_path).request(line(moved))
    assert (request.image, request.mask_image) == (str(path), [str(path)])
    assert request.controls == {"canny": (str(path), 0.5)}
    assert values["image"] == "a.png", "as the line has it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a fox", "cannot read line 1; expected a JSON object; found Expecting value"),
        ('"a fox"', "expected a JSON object; found str"),
        ('{"prompt": "a"} {}', "cannot read line 1"),
        ("[" * 2000, "cannot read line 1"),
        ('{"prompt": "a", "stepz": 3}', "unknown argument 'stepz', did you mean 'steps'?"),
        ('{"prompt": "a", "xyzzy": 3}', "unknown argument 'xyzzy'; expected prompt, negative_prompt"),
        ('{"prompt": "a", "latents": [1]}', "unknown argument 'latents'"),
        ('{"prompt": "a", "steps": 3, "num_inference_steps": 4}', "steps stands twice in a line"),
        ('{"prompt": 5}', "invalid prompt; expected text, or a list of texts; found 5"),
        ('{"prompt": "a", "steps": "many"}', "invalid steps; expected a whole number; found 'many'"),
        ('{"prompt": "a", "guidance": NaN}', "invalid guidance"),
        ('{"prompt": "a", "seed": -1}', "invalid seed"),
        ('{"prompt": "a", "eta": {"base": 1}}', "invalid eta; expected no JSON object"),
        ('{"prompt": "a", "image": 5}', "invalid image; expected the path of an image, or a list of paths; found 5"),
        ('{"prompt": "a", "image": "nowhere.png"}', "nowhere.png"),
        ('{"prompt": "a", "controls": {"canny": [1, 2]}}', "invalid controls 'canny'; expected the path"),
        (r'{"prompt": "\ud83d"}', "invalid prompt; expected text of whole characters"),
    ],
)
def test_a_line_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(LdmrtError) as refused:
        Reader(True).request(line(text))
    assert message in str(refused.value)


def test_values_at_random_are_taken_or_refused() -> None:
    """Nothing that JSON can hold under a known word is a traceback."""
    rng = random.Random(0)
    pieces: list[Any] = [None, True, -1, 0, 3, 1e400, 0.5, "", "ddim", [], [1], ["a"], [[1]], {}, {"base": 1}]
    for _ in range(3000):
        given = {word: rng.choice(pieces) for word in rng.sample(sorted(WORDS), rng.randint(1, 4))}
        with contextlib.suppress(LdmrtError):
            Reader(True, {"steps": 4}).request(line(given))


def test_a_line_that_has_failed_is_read_again() -> None:
    """With the seed that it would have had, and so to the same image wherever it stands."""
    reader = Reader(True, {"seed": 5})
    for given in ({"prompt": "a", "steps": 3}, {"prompt": "a", "seed": 9}):
        failed = as_line(reader.failed(line(given, 7), "it failed")).decode()
        assert json.loads(failed)["error"] == "it failed"
        assert Reader(True).request(line(failed, 100))[0] == reader.request(line(given, 7))[0]
    failed = as_line(Reader(False, {"seed": 5}).failed(line("a fox", 7), "it failed")).decode()
    assert Reader(True).request(line(failed, 100))[0] == Request("a fox", seed=11)


def test_what_is_no_json_is_kept_to_be_mended() -> None:
    failed = Reader(True).failed(line('{"prompt": "a"'), "it failed")
    assert failed == {"text": '{"prompt": "a"', "error": "it failed"}
    with pytest.raises(InvalidRequest, match="unknown argument 'text'"):
        Reader(True).request(line(failed))


def test_half_a_character_can_be_written() -> None:
    assert json.loads(as_line({"prompt": "\ud83d"})) == {"prompt": "\ud83d"}
    assert as_line({"prompt": "ü"}) == '{"prompt": "ü"}\n'.encode()
