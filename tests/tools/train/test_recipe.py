"""Recipes: what a run keeps of its options is the run again, and what is wrong in one is one error."""

import re
from pathlib import Path
from typing import Any

import click
import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.tools.commands.training.train import train
from ldmrt.tools.console.training.recipe import options_of, read_recipe, recipe_of, split_settings
from ldmrt.tools.options.checkpoint import Weighed, Word

from ...support.image_files import save_noise

WEIGHTS = Path("vae") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_noise(tmp_path_factory.mktemp("pictures"), 4)


@pytest.mark.slow(minutes=0.1)
def test_a_recipe_is_the_run_again(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    first, again, other, set_again = (tmp_path / name for name in ("first", "again", "other", "set"))
    words = ("--data", pictures, "--size", 16, "--batch", 2, "--steps", 2, "--seed", 3)
    assert ldmrt("train", "autoencoder", *words, "--out", first).code == 0
    recipe = first / "recipe.toml"
    assert ldmrt("train", recipe, "--out", again).code == 0
    assert (again / "recipe.toml").read_text() == recipe.read_text()
    assert (again / WEIGHTS).read_bytes() == (first / WEIGHTS).read_bytes()
    assert ldmrt("train", recipe, "--seed", 4, "--out", other).code == 0
    assert ldmrt("train", recipe, "--set", "seed=4", "--out", set_again).code == 0
    assert (other / WEIGHTS).read_bytes() == (set_again / WEIGHTS).read_bytes() != (first / WEIGHTS).read_bytes()
    assert "seed = 4" in (other / "recipe.toml").read_text()
    assert ldmrt("train", recipe, "--out", again, "--resume", "--steps", 3, "--change", "steps").code == 0
    assert "steps = 3" in (again / "recipe.toml").read_text()


@pytest.mark.parametrize("name", list(train.commands))
def test_every_option_is_kept(name: str, tmp_path: Path) -> None:
    """Unusual values of all options come back, also lists and text that TOML has to escape."""
    command = train.commands[name]
    values: dict[str, Any] = {}
    for option in options_of(command).values():
        assert option.name is not None
        kind = option.type
        if isinstance(option, click.Option) and option.is_flag:
            values[option.name] = True
        elif isinstance(kind, click.Choice):
            values[option.name] = kind.choices[-2:] if option.multiple else kind.choices[-1]
        elif isinstance(kind, click.types.IntParamType):
            values[option.name] = min(600, int(getattr(kind, "max", None) or 600))
        elif isinstance(kind, click.types.FloatParamType):
            number = max(3e-05, float(getattr(kind, "min", None) or 0))
            values[option.name] = (number, 0.5) if option.multiple else number
        elif isinstance(kind, (Weighed, Word)):
            values[option.name] = tuple(kind.convert(text, None, None) for text in (f"{tmp_path}:0.5", str(tmp_path)))
        elif option.name == "text_encoders":
            values[option.name] = {"text_encoder": tmp_path, "text_encoder_2": tmp_path / 'a "b"'}
        elif option.multiple:
            values[option.name] = ('a "b"', "c\\d\n\u00e9\U0001f34e\x7f")
        elif isinstance(kind, click.types.StringParamType):
            values[option.name] = 'a "b"'
        else:
            values[option.name] = tmp_path / 'a "b"'
    path = tmp_path / "r.toml"
    path.write_text(recipe_of(command, values))
    context = click.Context(train)
    _, found, words = train.resolve_command(context, [str(path), "--out", str(tmp_path / "out")])
    assert found is command
    parsed = command.make_context(name, words, parent=context).params
    assert {key: parsed[key] for key in values} == values


def test_options_replace_what_the_recipe_says(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('task = "autoencoder"\nstyle = ["noto", "twemoji"]\nlearning-rate = 0.5\nsteps = 7\n')
    for words in (["--style", "fluent", "--steps=8"], ["--set", "style=fluent", "--set=steps=8"]):
        _, _, found = train.resolve_command(click.Context(train), [str(path), *words])
        joined = " ".join(found).replace("=", " ")
        assert "--style fluent" in joined
        assert "noto" not in joined
        assert "--steps 8" in joined
        assert "--steps 7" not in joined
        assert "--learning-rate 0.5" in joined


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("steps = 3", [], "invalid task in .*; expected autoencoder, .*; found nothing"),
        ('task = "lmd"', [], "invalid task in .*, did you mean 'ldm'"),
        ('task = "ldm"\nstepz = 3', [], "no option 'stepz' of ldm, did you mean 'steps'"),
        ('task = "ldm"', ["--set", "stepz=3"], "no option 'stepz' of ldm, did you mean 'steps'"),
        (
            'task = "ldm"\nout = "x"',
            [],
            "out is no part of a recipe; found out = 'x'",
        ),
        ('task = "ldm"', ["--set", "resume=1"], "resume is no part of a recipe"),
        ('task = "ldm"\ndata = "a\\u0000b"', [], "invalid data in .*; expected no null character"),
        ("schema = true", [], "unsupported schema of .*; expected 1; found True"),
        ('task = "ldm"\nsteps = "3"', [], "invalid steps in .*; expected an integer; found '3'"),
        ('task = "ldm"\nsteps = true', [], "invalid steps in .*; expected an integer; found True"),
        ('task = "ldm"\nsteps = [3]', [], r"invalid steps in .*; expected an integer; found \[3\]"),
        ('task = "ldm"\nlearning_rate = "fast"', [], "invalid learning_rate in .*; expected a number; found 'fast'"),
        ('task = "ldm"\nstyle = 3', [], "invalid style in .*; expected a string or several; found 3"),
        ('task = "ldm"\ndata = 3', [], "invalid data in .*; expected a string; found 3"),
        ("schema = 2", [], "unsupported schema of .*; expected 1; found 2"),
        ("task = ", [], "cannot read .*; expected a recipe in TOML; found Invalid value"),
        ('task = "ldm"', ["--set", "steps"], "invalid --set; expected KEY=VALUE; found steps"),
        ('task = "ldm"', ["--set"], "invalid --set; expected KEY=VALUE; found nothing"),
    ],
)
def test_bad_recipes(
    ldmrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(text)
    ran = ldmrt("train", "r.toml", "--out", "out", *words)
    assert re.search(message, ran.error), ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["r.toml"]


def test_an_empty_setting_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b'\xef\xbb\xbftask = "autoencoder"\nvalidation = 0.25\nsteps = 7\n')
    _, _, words = train.resolve_command(click.Context(train), [str(path), "--set", "validation="])
    assert words == ["--steps", "7"]


def test_a_recipe_that_is_missing_or_not_text(ldmrt: Any, tmp_path: Path) -> None:
    assert "nowhere.toml" in ldmrt("train", tmp_path / "nowhere.toml", "--out", tmp_path / "out").error
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    assert "expected a recipe in TOML" in ldmrt("train", tmp_path / "r.toml", "--out", tmp_path / "out").error


def test_settings_are_taken_out() -> None:
    assert split_settings(["--set", "a-b=c=d", "--x", "--set=e="]) == (["--x"], {"a_b": "c=d", "e": ""})


def test_a_recipe_has_a_schema(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('schema = 1\ntask = "ldm"\nlearning-rate = 1\n')
    assert read_recipe(tmp_path / "r.toml") == {"task": "ldm", "learning_rate": 1}


def test_a_flag_is_true_or_false(tmp_path: Path) -> None:
    path, context = tmp_path / "r.toml", click.Context(train)
    for said, expected in (("true", True), ("false", False)):
        path.write_text(f'task = "autoencoder"\ncheckpointing = {said}\n')
        assert ("--checkpointing" in train.resolve_command(context, [str(path)])[2]) is expected
    words = [str(path), "--set", "checkpointing=true"]
    assert "--checkpointing" in train.resolve_command(context, words)[2]
    for wrong in ('"yes"', "1"):
        path.write_text(f'task = "autoencoder"\ncheckpointing = {wrong}\n')
        with pytest.raises(LdmrtError, match=r"invalid checkpointing .*; expected true or false; found"):
            train.resolve_command(context, [str(path)])
    with pytest.raises(LdmrtError, match="expected true or false; found 'yes'"):
        train.resolve_command(context, [str(path), "--set", "checkpointing=yes"])
