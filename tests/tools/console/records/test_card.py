"""The card of a run: the same whether it was stopped or not, and never in the place of one that a person wrote."""

import errno
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.tasks import presets
from ldmrt.tools.commands.training.train import train
from ldmrt.tools.console.training.records import card as cards
from ldmrt.tools.console.training.records.card import KINDS, POINTS, Card, _curves, shown
from ldmrt.tools.console.training.records.data_facts import facts_of
from ldmrt.tools.console.training.records.stamp import may_replace, stamped

from .cards import blocks, card_of, check_card, words_of

ODD = "a\nb`|`c|\\|d \udcff$(e) 'f' \"g\" <!-- --> \u202e\U0001f34e"


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five of different sizes, three with a licence, beside which the tests run; networks are small."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    rows = [
        {"file_name": f"{i}.png", "text": "noise", "license": ["cc0", "cc-by", "cc0", "", None][i]} for i in range(5)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = replace(presets.AUTOENCODER, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2)
    monkeypatch.setattr(presets, "AUTOENCODER", config)
    monkeypatch.chdir(tmp_path)
    return folder


WORDS = ("train", "autoencoder", "--data", "pictures", "--size", 16, "--batch", 2, "--log-every", 2, "--save-every", 3)


def test_a_run_that_was_stopped_has_the_card_of_one_that_was_not(ldmrt: Any, pictures: Path) -> None:
    words = (*WORDS, "--schedule", "constant", "--validation", 0.3)
    assert ldmrt(*words, "--steps", 6, "--out", "a/run").code == 0
    assert ldmrt(*words, "--steps", 3, "--out", "b/run").code == 0
    before = card_of(Path("b/run"))
    assert ldmrt(*words, "--steps", 6, "--out", "b/run", "--resume").code == 0
    for name in ("README.md", "training/loss.png"):
        content = Path("a/run", name).read_bytes().replace(b"a/run", b"b/run")
        written = Path("b/run", name).read_bytes()
        assert written.rpartition(b"sha256:")[0] == content.rpartition(b"sha256:")[0], name
    text = card_of(Path("b/run"))
    assert "| steps | 6 of 6, in batches of 2 |" in text
    assert "| steps | 3 of 3, in batches of 2 |" in before
    assert "| data | `pictures` |\n| images | 4, and 1 held out |\n" in text
    assert "| sizes | 16 × 20 to 16 × 24 pixels, median 16 × 22 |" in text
    assert "| licences | `cc0` 2, `cc-by` 1, not stated 2 |" in text
    assert "training/autoencoder-000006.png" in text
    logged = [json.loads(line) for line in Path("b/run/log.jsonl").read_text().splitlines()]
    losses = [f"| {line['step']} | {line['loss']:.4g} |" for line in logged if "validation" in line]
    assert "\n".join(["| step | loss of held-out images |", "| --- | --- |", *losses]) in text
    assert len(losses) == 2
    assert "Changes" not in text


def test_what_was_changed_on_the_way_is_told(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    words = (*WORDS, "--out", tmp_path / "run")
    assert ldmrt(*words, "--steps", 3).code == 0
    changed = ("--steps", 6, "--learning-rate", 5e-4, "--flip")
    allowed = ("--change", "steps", "--change", "learning-rate", "--change", "flip")
    assert ldmrt(*words, *changed, "--resume", *allowed).code == 0
    check_card(tmp_path / "run", "autoencoder")
    assert card_of(tmp_path / "run").partition("## Changes on the way\n")[2].splitlines()[3:] == [
        "- after step 3: `flip` was the default and is `True`",
        "- after step 3: `steps` was `3` and is `6`",
        "- after step 3: `learning-rate` was `0.001` and is `0.0005`",
    ]
    done = card_of(tmp_path / "run")
    (tmp_path / "run" / "README.md").unlink()  # as if it had been killed before
    assert ldmrt(*words, *changed, "--resume").code == 0
    assert card_of(tmp_path / "run") == done


@pytest.mark.parametrize("edit", ["one's own", "edited", "appended to", "a folder", "a link to nothing"])
def test_what_a_person_wrote_stays(edit: str, ldmrt: Any, pictures: Path) -> None:
    path = Path("run/README.md")
    assert ldmrt(*WORDS, "--steps", 1, "--out", "run").code == 0
    assert may_replace(path)
    if edit == "edited":
        path.write_text(path.read_text().replace("# run", "# A better name"))
    elif edit == "appended to":
        path.write_text(path.read_text() + "\nMore.\n")
    else:
        path.unlink()
        {"one's own": lambda: path.write_text("# Mine\n"), "a folder": path.mkdir,
         "a link to nothing": lambda: path.symlink_to("nowhere")}[edit]()  # fmt: skip
    before = path.read_bytes() if path.is_file() else None
    ran = ldmrt(*WORDS, "--steps", 3, "--save-every", 1, "--out", "run", "--resume", "--change", "steps")
    assert ran.code == 0, ran.err
    assert ran.err.count("run/README.md is not as ldmrt train writes it, and stays") == 1
    assert (path.read_bytes() if path.is_file() else None) == before
    assert path.is_symlink() is (edit == "a link to nothing")


def test_a_card_that_cannot_be_written_is_one_error(
    ldmrt: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(cards, "write_atomically", refuse)
    ran = ldmrt(*WORDS, "--steps", 1, "--out", "run")
    assert "train: run/training/loss.png cannot be written; found read-only file system" in ran.error
    assert "try: --resume" in ran.err
    assert not Path("run/README.md").exists()


def written(tmp_path: Path, differing: dict[str, Any], task: str = "finetune", changes: Sequence[Any] = ()) -> str:
    """The card of a run that was not trained."""
    run: Any = SimpleNamespace(step=1, settings=Settings(1, 1, 1e-3), changes=changes)
    options: Any = SimpleNamespace(
        out=tmp_path / "run", task=task, differing=differing, folder=Path(differing["data"][0]), log_every=1
    )
    return Card(run, options, None, None).text([])


def test_any_name_keeps_the_card_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The front matter is YAML, Markdown shows each cell whole, and the command is the same words in a shell."""
    from huggingface_hub import ModelCard
    from markdown_it import MarkdownIt

    monkeypatch.chdir(tmp_path)
    options = {"from": (ODD, None), "data": (ODD, None), "prompt": (f"/{ODD}", None), "lora": ([ODD, "b"], None)}
    change = {"step": 3, "name": "loss-mask", "before": f"/secret/{ODD}", "now": ODD}
    text = written(tmp_path, {**options, "flip": (True, False), "batch": (2, 4)}, changes=[change])
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == ModelCard(text).data.base_model
    assert "secret" not in text
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    shell = "set -- $(true)\nldmrt() { printf '%s\\0' \"$@\"; }\n"
    words = ["finetune", "--from", ODD, "--data", ODD, "--prompt", f"/{ODD}", "--lora", ODD, "--lora", "b", "--flip"]
    ran = subprocess.run(["bash", "-c", shell + blocks(text)[1]], capture_output=True, check=True)
    assert ran.stdout.split(b"\0")[1:-1] == [os.fsencode(word) for word in [*words, "--batch", "2", "--out", "run"]]
    tokens = MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2])
    rows = [[]]  # type: ignore[var-annotated]
    for before, token in pairwise(tokens):
        rows += [[]] * (before.type == "tr_open")
        if before.type == "td_open":
            rows[-1] = [*rows[-1], "".join(child.content for child in token.children or ())]
    expected = "a\\nb`|`c|\\|d \\udcff$(e) 'f' \"g\" <!-- --> \\u202e\U0001f34e"
    assert ["data", expected] in rows
    assert ["prompt", f"/{expected}", ""] in rows
    assert ["lora", f"{expected}, b", ""] in rows
    assert ["flip", "True", "False"] in rows


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("runs/ae", "runs/ae"), ("../photos", "../photos"), ("/home/me/photos", "photos"),
        ("/home/me/a.pt:0.5", "a.pt:0.5"), ("hf:/home/me/set:train", "hf:set:train"),
        ("C:\\Users\\me\\photos", "photos"), ("hf:owner/name", "hf:owner/name"),
        ("text_encoder_2=/home/me/clip", "text_encoder_2=clip"), ("/home/x=1/photos", "photos"), ("alpha", "alpha"),
        ("/data/shard-{000..127}.tar", "shard-{000..127}.tar"),
    ],
)  # fmt: skip
def test_absolute_paths_are_names(path: str, expected: str) -> None:
    assert shown(path) == expected


@pytest.mark.parametrize("task", train.commands)
def test_every_training_has_a_card(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = written(tmp_path, {"data": ("hf:owner/name:test", None)}, task)
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["tags"] == ["ldmrt", task]
    assert data["datasets"] == ["owner/name"]
    assert ("library_name" in data) is (task not in ("classes", "upscaler"))  # whose pipelines diffusers has not
    assert set(KINDS) == set(train.commands)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\nlicense: mit\n", "apache-2.0"), ("---\ntags: []\n---\nlicense: mit\n", None),
        ("license: mit\n", None), ("---\nlicense: other\n---\n", None), ("---\nlicense: mit\n", None), (None, None),
    ],
)  # fmt: skip
def test_the_licence_is_that_of_the_checkpoint(
    card: str | None, licence: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    if card is not None:
        (tmp_path / "runs" / "base" / "README.md").write_text(card)
    text = written(tmp_path, {"from": ("runs/base", None), "data": ("photos", None)})
    data = yaml.safe_load(text.split("---\n")[1])
    assert (data.get("license"), data["base_model"]) == (licence, "base")


def test_a_hub_name_stays(tmp_path: Path) -> None:
    text = written(tmp_path, {"from": ("owner/name", None), "data": ("photos", None)}, "lora")
    data = yaml.safe_load(text.split("---\n")[1])
    assert (data["base_model"], data["base_model_relation"]) == ("owner/name", "adapter")


def test_each_image_counts_once(pictures: Path) -> None:
    """Also where several lines name it, of metadata.csv too, and where it is skipped."""
    (pictures / "metadata.jsonl").unlink()
    lines = ["file_name,text,licence", "0.png,a,mit", "0.png,b,other", "1.png,c,", "2.png,d,mit", "3.png,e,x", ""]
    (pictures / "metadata.csv").write_text("\n".join(lines))
    images = ImageFolder.open(pictures)
    images = replace(images, skipped=frozenset({"3.png"}), shapes={"0.png": (8, 9), "1.png": (8, 9)})
    assert facts_of(images, None) == [
        ("images", "3"),
        ("sizes", "8 × 9 pixels"),
        ("licences", "`mit` 2, not stated 1"),
    ]
    (pictures / "metadata.csv").write_text("\n".join(["file_name,text", "0.png,a"]))
    assert facts_of(ImageFolder.open(pictures), None) == [("images", "1")]
    emoji: Any = range(12)
    assert facts_of(emoji, None) == [("images", "12 pairs of an emoji and a background")]


def test_a_stamp_is_of_the_whole_text(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    assert may_replace(path)
    content = stamped("# a\n")
    for changed in (content, content[1:], content[:-1], content + b"\n", content.replace(b"a", b"b", 1)):
        path.write_bytes(changed)
        assert may_replace(path) is (changed == content)


def test_a_pasted_command_is_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    many = [f"style number {i}" for i in range(12)]
    text = written(tmp_path, {"data": ("my photos", None), "style": (many, None)})
    command = blocks(text)[1]
    assert max(map(len, command.splitlines())) <= 102
    words = [word for style in many for word in ("--style", style)]
    assert words_of(command)[2:] == ["finetune", "--data", "my photos", *words, "--out", "run"]


def test_lines_at_which_a_run_stopped_change_no_curve() -> None:
    """Losses are averaged over samples: batches of a bucket's rest are smaller."""
    losses, counts = np.random.default_rng(0).random(1001), np.random.default_rng(1).integers(1, 5, 1001)

    def lines(ends: Sequence[int]) -> list[Any]:
        return [
            {"step": end, "samples": int(counts[:end].sum()), "loss": np.average(losses[a:end], weights=counts[a:end])}
            for a, end in pairwise([0, *ends])
        ]

    held = {"step": 500, "loss": 0.25, "validation": {}}
    whole = _curves([*lines([*range(2, 1001, 2), 1001]), held, {**held, "loss": None}], 2)
    stopped = _curves(lines(sorted({*range(2, 1001, 2), 1001, 3, 501, 777})), 2)
    assert whole["held-out images"] == [(500, 0.25)]
    steps = [step for step, _ in whole["loss"]]
    assert steps == [*range(6, 1001, 6), 1001]
    assert len(steps) <= POINTS
    means = [np.average(losses[a:b], weights=counts[a:b]) for a, b in pairwise([0, *steps])]
    for points in (whole["loss"], stopped["loss"]):
        assert points == [(step, pytest.approx(mean, rel=1e-13)) for step, mean in zip(steps, means, strict=True)]
    assert _curves([held], 2) == {}
