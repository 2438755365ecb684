"""`ldmrt samplers`: the list, the plans, the picture; and the worked example of docs/samplers.md."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import SCHEDULERS, LdmrtError, plan_from_config
from ldmrt.runtime.samplers.config import CONFIG
from ldmrt.runtime.samplers.registry import SPACINGS
from ldmrt.tools.commands.samplers import evaluations
from ldmrt.tools.reports.sampler_plot import COLORS, level

PAGE = (Path(__file__).parents[3] / "docs" / "samplers.md").read_text(encoding="utf-8")


def listed(ldmrt: Any, *words: object) -> dict[str, dict[str, Any]]:
    ran = ldmrt("samplers", "--json", *words)
    assert ran.code == 0, ran.err
    return {line.pop("name"): line for line in json.loads(ran.out)}


def test_list_names_every_scheduler(ldmrt: Any) -> None:
    lines = listed(ldmrt)
    assert list(lines) == list(SCHEDULERS)
    assert lines["heun"] == {
        "class": "HeunDiscreteScheduler",
        "order": 2,
        "evaluations": {"a_step": 2, "more": -1},
        "noise": "no",
        "eta": None,
        "grids": ["timesteps", "sigmas"],
        "endings": list(SPACINGS),
    }
    ran = ldmrt("samplers")
    assert ran.code == 0
    rows = {
        row[0]: row[1:] for line in ran.out.splitlines() if (row := [cell.strip() for cell in line.split("│")][1:-1])
    }
    assert list(rows) == list(SCHEDULERS)
    assert rows["heun"] == ["HeunDiscreteScheduler", "2", "2 N - 1", "no", "", "timesteps, sigmas"]
    assert rows["euler_a"] == ["EulerAncestralDiscreteScheduler", "1", "N", "yes", "1", "timesteps, sigmas"]
    assert rows["ddim"] == ["DDIMScheduler", "1", "N", "with eta", "0", ""]


@pytest.mark.parametrize("steps", [7, 20, 30])  # beside the 10 and 20 that the list is measured on
def test_counts_are_those_of_plans(ldmrt: Any, steps: int) -> None:
    for name, line in listed(ldmrt).items():
        plan = plan_from_config(CONFIG, steps, name=name)
        assert plan.rows == line["evaluations"]["a_step"] * steps + line["evaluations"]["more"], name
        assert any(map(plan.draws, range(plan.rows))) == (line["noise"] == "yes"), name


def works(name: str, **options: Any) -> bool:
    try:
        plan_from_config(CONFIG, 5, name=name, **options)
    except LdmrtError:
        return False
    return True


def test_endings_are_those_that_work(ldmrt: Any) -> None:
    for name, line in listed(ldmrt).items():
        assert [kind for kind in SPACINGS if works(f"{name}_{kind}")] == line["endings"], name
    assert (
        ldmrt("samplers")
        .out.splitlines()[-1]
        .startswith(
            "other spacings of noise levels: append _karras, _exponential, _beta to lms, euler, heun, dpm2, dpm2_a, "
        )
    )


def test_what_may_be_chosen_is_what_works(ldmrt: Any) -> None:
    grids: dict[str, Any] = {"timesteps": [900, 500, 100], "sigmas": [9.0, 2.0, 0.5, 0.0]}
    for name, line in listed(ldmrt).items():
        assert [what for what, grid in grids.items() if works(name, **{what: grid})] == line["grids"], name
        assert works(name, eta=0.5) == (line["eta"] is not None), name


@pytest.mark.parametrize(
    ("a_step", "more", "formula"), [(1, 0, "N"), (1, 9, "N + 9"), (2, -1, "2 N - 1"), (2, 0, "2 N")]
)
def test_formula(a_step: int, more: int, formula: str) -> None:
    assert evaluations(a_step, more) == formula


def test_config_of_a_checkpoint(ldmrt: Any, tmp_path: Path) -> None:
    config = {**CONFIG, "_class_name": "DDIMScheduler", "beta_end": 0.013}
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(config))
    assert ldmrt("samplers", "--config", tmp_path).out.splitlines()[-1] == "this config's own: ddim"
    for source in (tmp_path, file.parent, file):
        assert str(plan_from_config(config, 20, name="ddim")) in ldmrt("samplers", "ddim", "--config", source).out
    (tmp_path / "mine.json").write_text(json.dumps({**config, "prediction_type": "sample"}))
    lines = listed(ldmrt, "--config", tmp_path / "mine.json")
    scores = [name for name in SCHEDULERS if name.startswith(("score", "flow"))]  # for networks of their own
    assert [name for name, line in lines.items() if "problem" in line] == ["edm_euler", "edm_dpmpp_2m", *scores]
    out = ldmrt("samplers", "--config", tmp_path / "mine.json").out
    assert "unsupported with this config: edm_euler: scheduler: prediction_type sample" in out


def test_plans(ldmrt: Any) -> None:
    ran = ldmrt("samplers", "heun", "dpmpp_2m_karras", "--steps", 6, "--strength", 0.5)
    assert ran.code == 0
    for name in ("heun", "dpmpp_2m_karras"):
        plan = plan_from_config(CONFIG, 6, name=name, strength=0.5)
        assert f"{name}: 6 steps, {plan.rows} rows\n{plan}\n" in ran.out
    assert "x0: predicted clean latents" in ran.out
    assert "euler: 20 steps, 20 rows, starts from unit noise times 0.997667\n" in ldmrt("samplers", "euler").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "unknown scheduler 'nonsense'; expected ddim, ddpm, pndm"),
        (["ddim", "nonsense", "--json"], "unknown scheduler 'nonsense'"),
        (["euler_a_karras"], "EulerAncestralDiscreteScheduler has no use_karras_sigmas"),
        (["nonsense", "--plot", "out.png"], "unknown scheduler 'nonsense'"),
        (["ddim", "--steps", "0"], "invalid number of steps"),
        (["ddim", "--steps", "few"], "Invalid value for '--steps'"),
        (["ddim", "--strength", "2"], "invalid strength"),
        (["--steps", "5"], "--steps and --strength need NAMES or --plot"),
        (["ddim", "--strength", "1", "--json"], "--steps and --strength need NAMES"),
        (["--json", "--plot", "out.png"], "--json cannot be combined with --plot"),
        (["--plot", "out.jpg"], "invalid --plot; expected a file name that ends in .png, .svg, .pdf"),
        (["--plot", "folder.png"], "--plot: folder.png cannot be written; found a folder of that name"),
        (["--plot", "file/out.png"], "file"),
        (["--config", "nowhere"], "no scheduler_config.json at nowhere"),
        (["--config", "folder.png"], "no scheduler_config.json at folder.png"),
        (["--config", "file"], "cannot read file; expected a JSON object"),
        (["--config", "list.json"], "cannot read list.json; expected a JSON object; found list"),
        (["ddim", "--config", "odd.json"], "no beta_schedule 'odd'"),
        (["ddim", "euler", "--json", "--config", "odd.json"], "no beta_schedule 'odd'"),
    ],
)
def test_bad_words(ldmrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "odd.json").write_text('{"beta_schedule": "odd"}')
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert message in ldmrt("samplers", *words).error
    assert sorted(tmp_path.rglob("*")) == before


def test_picture(ldmrt: Any, tmp_path: Path) -> None:
    out = tmp_path / "new" / "samplers.png"
    ran = ldmrt("samplers", "--plot", out)
    assert (ran.code, ran.out) == (0, f"{out}\n")
    assert list(out.parent.iterdir()) == [out]
    assert out.stat().st_size < 60_000
    with Image.open(out) as image:
        colors = {"#{:02x}{:02x}{:02x}".format(*color) for _, color in image.convert("RGB").getcolors(1 << 20)}
        assert image.width > 2 * image.height
    near = [min(np.abs(rgb(one) - rgb(color)).max() for one in colors) for color in COLORS[:6]]
    assert max(near) <= 12  # of 255: the palette is of 256 colours
    content = out.read_bytes()
    assert ldmrt("samplers", "--plot", out).code == 0
    assert out.read_bytes() == content


def rgb(color: str) -> Any:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def test_picture_without_pixels(ldmrt: Any, tmp_path: Path) -> None:
    assert ldmrt("samplers", "euler", "heun", "--plot", tmp_path / "out.svg").code == 0
    picture = (tmp_path / "out.svg").read_text()
    for words in ("euler", "heun", "timestep", "noise level, sigma / alpha", "row: one evaluation of the network"):
        assert f"<!-- {words} -->" in picture
    assert ldmrt("samplers", "euler", "--plot", tmp_path / "out.pdf").code == 0
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")


def test_curves() -> None:
    """Euler and LMS have one grid, Heun visits each level twice, improved PNDM begins with noise alone."""
    from matplotlib.figure import Figure

    from ldmrt.tools.reports.sampler_plot import draw

    plans = {name: plan_from_config(CONFIG, 6, name=name) for name in ("euler", "lms", "heun", "ipndm")}
    axes = Figure().subplots()
    draw(axes, {name: level(plan) for name, plan in plans.items()})
    drawn = {line.get_label(): line for line in axes.get_lines()}
    for name, plan in plans.items():
        np.testing.assert_array_equal(drawn[name].get_xdata(), np.arange(plan.rows))
        ratio = plan.sigma[1:] / plan.alpha[1:]
        np.testing.assert_allclose(drawn[name].get_ydata()[1:], ratio, rtol=1e-12)  # the same division
    assert np.isnan(drawn["ipndm"].get_ydata()[0])
    assert drawn["heun"].get_linestyle() == "-"
    assert [drawn[name].get_linestyle() for name in ("euler", "lms")] == ["--", "--"]
    assert [drawn[name].get_markevery() for name in ("euler", "lms", "heun")] == [(0, 2), (1, 2), (0, 1)]


def test_picture_without_matplotlib(ldmrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = ldmrt("samplers", "--plot", tmp_path / "out.png")
    assert "samplers: matplotlib is not installed" in ran.error
    assert "  try: pip install 'ldmrt[plot]'" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_list_needs_numpy_and_rich_alone() -> None:
    program = "import sys; sys.argv = ['ldmrt', 'samplers', 'euler']; from ldmrt.tools import cli\n"
    program += "try: cli.main()\nexcept SystemExit as left: assert not left.code\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ran.stdout.splitlines()[-1].split()}
    assert "numpy" in loaded
    assert not loaded & {"torch", "diffusers", "matplotlib", "onnxruntime", "PIL"}


@pytest.fixture
def example() -> Iterator[str]:
    """The name that the page's code has put into the table."""
    before = dict(SCHEDULERS)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    (name,) = SCHEDULERS.keys() - before.keys()
    yield name
    del SCHEDULERS[name]


SAME: list[dict[str, Any]] = [
    {},
    {"prediction_type": "v_prediction"},
    {"timestep_spacing": "trailing"},
    {"use_karras_sigmas": True},
]


@pytest.mark.parametrize("change", SAME, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_example_of_the_page(example: str, change: dict[str, Any], steps: int) -> None:
    config = {**CONFIG, **change}
    for strength in (1.0, 0.5):
        mine, own = (plan_from_config(config, steps, name=name, strength=strength) for name in (example, "dpmpp_2m"))
        for field in ("t", "alpha", "sigma", "read", "table"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(own, field))


def test_example_prints_what_the_page_shows(example: str) -> None:
    shown = re.search(r"^    row .*\n(?:      \d .*\n)+", PAGE, re.MULTILINE)
    assert shown is not None
    assert str(plan_from_config({}, 4, name=example)) == "\n".join(line[4:] for line in shown[0].splitlines())


def test_page_names_every_scheduler() -> None:
    table = PAGE[PAGE.index("## What there is") :]
    assert {name for name in SCHEDULERS if f"`{name}`" not in table} == set()
