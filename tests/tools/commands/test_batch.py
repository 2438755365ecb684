"""`ldmrt batch`: the images of a file of prompts are those of `ldmrt generate`, and bad input changes nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.tools.options.checkpoint import WeighedFile
from ldmrt.tools.options.loras import stated_loras

from ...support.fakes.small_loras import small_lora

PROMPTS = ["a penguin", "two pears", "a red apple"]
ASKED = ("--steps", 3, "--seed", 5, "--negative", "grey", "--scheduler", "euler_a")


def opened(path: Path) -> tuple[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image), json.loads(image.text["ldmrt"])  # type: ignore[attr-defined]


def listed(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_images_and_metadata_are_those_of_generate(ldmrt: Any, bundle: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    ran = ldmrt("batch", bundle, prompts, out, *ASKED, "-n", 2)
    assert (ran.code, ran.out.splitlines()) == (0, [str(out / "index.jsonl")])
    assert "3 lines: 3 drawn, 0 failed; 6 images; " in ran.err
    assert not (out / "failed.jsonl").exists()
    ran = ldmrt("generate", bundle, *PROMPTS, *ASKED, "-n", 2, "--batch", 1, "-o", tmp_path / "alone" / "out.png")
    assert ran.code == 0
    entries = listed(out / "index.jsonl")
    assert [entry["seeds"] for entry in entries] == [[5, 6], [7, 8], [9, 10]]
    for number, file in enumerate(file for entry in entries for file in entry["files"]):
        image, notes = opened(out / file)
        alone, too = opened(tmp_path / "alone" / f"out-{number:02d}.png")
        np.testing.assert_array_equal(image, alone)
        assert notes == too


def test_a_line_of_json_has_its_own_options(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "start.png").parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(tmp_path / "start.png")
    own = {"prompt": "a fox", "steps": 4, "seed": 9, "guidance": 1, "image": str(tmp_path / "start.png")}
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{json.dumps(own)}\n{{"prompt": "a pear"}}\n')
    out = tmp_path / "out"
    assert ldmrt("batch", bundle, path, out, "--steps", 3, "--strength", 0.5).code == 0
    words = ("a fox", "--steps", 4, "--seed", 9, "--guidance", 1, "--image", tmp_path / "start.png", "--strength", 0.5)
    assert ldmrt("generate", bundle, *words, "-o", tmp_path / "fox.png").code == 0
    image, notes = opened(out / "000/000/000001-0.png")
    alone, too = opened(tmp_path / "fox.png")
    np.testing.assert_array_equal(image, alone)
    assert notes == too
    assert notes["image"] == "start.png"
    assert opened(out / "000/000/000002-0.png")[1]["steps"] == 3


def test_a_line_has_noise_of_its_own(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    prompts, words = tmp_path / "prompts.jsonl", ("--steps", 2, "--seed", 4)
    prompts.write_text('{"prompt": "a pear", "noise": "torch-cpu"}\n')
    assert ldmrt("batch", bundle, prompts, tmp_path / "out", *words).code == 0
    assert ldmrt("generate", bundle, "a pear", *words, "--noise", "torch-cpu", "-o", tmp_path / "a.png").code == 0
    assert ldmrt("generate", bundle, "a pear", *words, "-o", tmp_path / "b.png").code == 0
    drawn, same, other = (
        Image.open(path).tobytes()
        for path in (tmp_path / "out/000/000/000001-0.png", tmp_path / "a.png", tmp_path / "b.png")
    )
    assert drawn == same != other


def test_lines_that_failed_are_mended(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    """The exit code is 1; mended they become the images that they would have been."""
    path, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    path.write_text('{"prompt": "a fox"}\n{"prompt": "a pear", "stepz": 4}\n\n{"prompt": "an owl"}\n')
    ran = ldmrt("batch", bundle, path, out, "--steps", 2)
    assert (ran.code, ran.out.splitlines()) == (1, [str(out / "index.jsonl"), str(out / "failed.jsonl")])
    assert "4 lines: 2 drawn, 1 failed, 1 blank; 2 images" in ran.err
    before = files_in(out)
    ran = ldmrt("batch", bundle, path, out, "--steps", 2)
    assert ran.code == 1
    assert "4 lines, 4 of them before: 2 drawn, 1 failed" in ran.err
    assert files_in(out) == before
    mended = tmp_path / "mended.jsonl"
    mended.write_text((out / "failed.jsonl").read_text().replace("stepz", "steps"))
    assert ldmrt("batch", bundle, mended, tmp_path / "again", "--steps", 2).code == 0
    path.write_text(path.read_text().replace("stepz", "steps"))
    assert ldmrt("batch", bundle, path, tmp_path / "right", "--steps", 2).code == 0
    again, right = (opened(tmp_path / name) for name in ("again/000/000/000001-0.png", "right/000/000/000002-0.png"))
    np.testing.assert_array_equal(again[0], right[0])
    assert again[1] == right[1]


def test_more_lines_are_drawn_by_the_same_command(ldmrt: Any, bundle: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert ldmrt("batch", bundle, prompts, out, "--steps", 2).code == 0
    before = files_in(out)
    prompts.write_text("\n".join([*PROMPTS, "an owl", "a fox"]))
    ran = ldmrt("batch", bundle, prompts, out, "--steps", 2, "--batch", 1, "--threads", 1)  # which change no image
    assert ran.code == 0
    assert "5 lines, 3 of them before: 5 drawn" in ran.err
    after = files_in(out)
    assert after["index.jsonl"].startswith(before.pop("index.jsonl"))
    assert {name: after[name] for name in before} == before
    prompts.write_text("\n".join(["an owl", *PROMPTS[1:]]))
    error = ldmrt("batch", bundle, prompts, out, "--steps", 2).error
    assert f"line 1 of {prompts} is not that of the run in {out}" in error
    assert files_in(out) == after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", 30], "were drawn with another --steps; expected 2; found 30"),
        (["--steps", 2, "--seed", 1], "were drawn with another --seed; expected 0; found 1"),
        (["--steps", 2, "--set", "timestep_spacing=trailing"], "were drawn with another --set; expected {}"),
        (["--steps", 2, "--tile", 16], "were drawn with another --tile"),
    ],
)
def test_other_options(
    ldmrt: Any, bundle: Path, prompts: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    out = tmp_path / "out"
    assert ldmrt("batch", bundle, prompts, out, "--steps", 2).code == 0
    before = files_in(out)
    assert message in ldmrt("batch", bundle, prompts, out, *options).error
    assert files_in(out) == before


def test_another_bundle(ldmrt: Any, bundle: Path, changed: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert ldmrt("batch", bundle, prompts, out, "--steps", 2).code == 0
    manifest = json.loads((changed / "ldmrt.json").read_text())
    manifest["files"]["unet/model.onnx_data"]["sha256"] = "0" * 64
    (changed / "ldmrt.json").write_text(json.dumps(manifest))
    error = ldmrt("batch", changed, prompts, out, "--steps", 2).error
    assert "are of another bundle; expected bundle; found changed" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "-1"], "request: invalid --steps; expected at least 1; found -1"),
        (["--steps", "1001"], "invalid number of steps; expected 1 to 1000"),
        (["--scheduler", "heron"], "unknown scheduler 'heron', did you mean 'heun'?"),
        (["--width", "15"], "invalid width; expected a multiple of 2; found 15"),
        (["--backend", "cuda"], "no backend 'cuda'"),
        (["--tile", "7"], "invalid tile"),
        (["--stepz", "1"], "No such option"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    ldmrt: Any, bundle: Path, prompts: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in ldmrt("batch", bundle, prompts, tmp_path / "a" / "out", *options).error
    assert list(tmp_path.iterdir()) == [prompts]


def test_bad_places(ldmrt: Any, bundle: Path, checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert f"{checkpoint} is a checkpoint, not a bundle" in ldmrt("batch", checkpoint, prompts, out).error
    assert "missing file" in ldmrt("batch", bundle, tmp_path / "nowhere.txt", out).error
    assert "found a folder" in ldmrt("batch", bundle, tmp_path, out).error
    assert "no directory nowhere" in ldmrt("batch", "nowhere", prompts, out).error
    assert "a file of that name" in ldmrt("batch", bundle, prompts, prompts).error
    assert "holds no run of ldmrt batch" in ldmrt("batch", bundle, prompts, tmp_path).error
    assert list(tmp_path.iterdir()) == [prompts]


def test_lines_are_drawn_with_their_own_loras(ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("oil", "ink")):
        small_lora(Path(f"{name}.safetensors"), seed)
    sets: list[Any] = [None, {}, {"ink": 0.5}, {"oil": 0.3, "ink": 1}]
    lines = [{"prompt": "a pear", "seed": 3} | ({} if loras is None else {"loras": loras}) for loras in sets]
    tag = {"prompt": "a pear<lora:ink:0.5>", "seed": 3, "prompt_syntax": "a1111"}
    wrong = [
        {"prompt": "a", "loras": {"oyl": 1}},
        {"prompt": "a", "loras": {"oil": "much"}},
        {"prompt": "a", "loras": 3},
    ]
    Path("lines.jsonl").write_bytes(b"".join(json.dumps(one).encode() + b"\n" for one in (*lines, tag, *wrong)))
    loras = ("--lora", "oil.safetensors:0.8", "--lora", "ink.safetensors:0")
    ran = ldmrt("batch", bundle, "lines.jsonl", "out", "--steps", 2, *loras)
    assert (ran.code, "5 drawn, 3 failed" in ran.err) == (1, True), ran.err
    entries = listed(Path("out/index.jsonl"))
    assert "no LoRA 'oyl' is loaded, did you mean 'oil'?; expected oil, ink" in entries[5]["error"]
    for entry, own in zip(entries, [{"oil": 0.8}, *sets[1:]], strict=False):
        words = [f"--lora={name}.safetensors:{weight}" for name, weight in own.items()]
        assert ldmrt("generate", bundle, "a pear", "--seed", 3, "--steps", 2, *words, "-o", "a.png").code == 0
        file = f"out/{entry['files'][0]}"
        image, notes = opened(Path(file))
        np.testing.assert_array_equal(image, opened(Path("a.png"))[0])
        assert {*notes["made"].get("loras", {})} == {*own} | ({"ink"} if own == {"oil": 0.8} else set())
        assert ldmrt("replay", file, "--bundle", bundle).code == 0
        Path("a.png").unlink()
    small_lora(Path("oil.safetensors"), 7)
    ran = ldmrt("batch", bundle, "lines.jsonl", "out", "--steps", 2, *loras)
    assert (ran.code, "were drawn with another --lora" in ran.error) == (2, True)


def test_a_lora_in_a_folder_is_stated_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_lora_weights.safetensors"
    small_lora(file, 0)
    before = stated_loras([WeighedFile(tmp_path, 0.5)])
    assert before == stated_loras([WeighedFile(tmp_path, 0.5)])
    small_lora(file, 1)
    assert before != stated_loras([WeighedFile(tmp_path, 0.5)])
