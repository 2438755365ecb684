"""A certificate covers every file that an image depends on, and a reference that proves nothing says so."""

import hashlib
import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import Bundle, LdmrtError, LdmrtWarning
from ldmrt.runtime.bundle.manifest import MANIFEST
from ldmrt.runtime.files import numpy_archive


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any] = lambda manifest: None) -> None:
    """A manifest written anew for files that were changed, with its certificate as it was."""
    manifest = json.loads((path / MANIFEST).read_text())
    files = {one.relative_to(path).as_posix(): one.read_bytes() for one in path.rglob("*") if one.is_file()}
    del files[MANIFEST]
    manifest["files"] = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def warned(path: Path) -> list[str]:
    """What `open` warns of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ldmrt.runtime.open(path).close()
    return [str(one.message) for one in said if issubclass(one.category, LdmrtWarning)]


def with_json(name: str, **values: Any) -> Callable[[Path], Any]:
    return lambda path: (path / name).write_text(json.dumps(json.loads((path / name).read_text()) | values))


def swapped_merges(path: Path) -> None:
    lines = (path / "tokenizer/merges.txt").read_text().splitlines()
    (path / "tokenizer/merges.txt").write_text("\n".join([*lines[:2], lines[3], lines[2], *lines[4:]]))


CHANGED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "scheduler": ("scheduler/scheduler_config.json", with_json("scheduler/scheduler_config.json", beta_end=0.02)),
    "scaling factor": ("vae_decoder/config.json", with_json("vae_decoder/config.json", scaling_factor=0.13025)),
    "size": ("unet/config.json", with_json("unet/config.json", sample_size=16)),
    "model index": ("model_index.json", with_json("model_index.json", force_zeros_for_empty_prompt=True)),
    "merges": ("tokenizer/merges.txt", swapped_merges),
    "length": ("tokenizer/tokenizer_config.json", with_json("tokenizer/tokenizer_config.json", model_max_length=9)),
    "text config": ("text_encoder/config.json", with_json("text_encoder/config.json", note=1)),
    "a file more": ("tokenizer/added_tokens.json", lambda p: (p / "tokenizer/added_tokens.json").write_text("{}")),
    "a file less": ("tokenizer/tokenizer.json", lambda p: (p / "tokenizer/tokenizer.json").unlink()),
    "graph": ("unet/step.onnx", lambda p: shutil.copy(p / "unet/model.onnx", p / "unet/step.onnx")),
}


@pytest.mark.parametrize("name", list(CHANGED))
def test_whatever_changes_is_warned_of(changed: Path, name: str) -> None:
    assert warned(changed) == []
    file, change = CHANGED[name]
    change(changed)
    rewrite(changed)
    (said,) = warned(changed)
    assert file in said
    assert "that was certified" in said or "that were certified" in said


def test_what_the_manifest_says_of_networks_is_covered(changed: Path) -> None:
    rewrite(changed, lambda manifest: manifest["components"]["unet"].update(precision="fp16"))
    (said,) = warned(changed)
    assert "ldmrt.json describes the networks differently than when they were certified" in said


def test_many_files_are_counted(changed: Path) -> None:
    for file in [*changed.glob("*/config.json"), *changed.glob("tokenizer/*.json")]:
        file.write_bytes(file.read_bytes() + b"\n")
    rewrite(changed)
    assert len(warned(changed)) == 4
    assert "and 4 more files are not" in warned(changed)[-1]


def test_an_old_certificate_says_what_it_leaves_open(ldmrt: Any, changed: Path, checkpoint: Path) -> None:
    """It still opens, and verifies; exporting again makes a new one."""

    def old(manifest: dict[str, Any]) -> None:
        about = manifest["certificate"]["about"]
        about["bundle"] = {name: one for name, one in about["bundle"].items() if ".onnx" in name}
        del about["manifest"], manifest["certificate"]["reference_sha256"]

    rewrite(changed, old)
    (said,) = warned(changed)
    assert "covers the networks alone, not tokenizers, scheduler and configs; next: ldmrt verify" in said
    assert Bundle.open(changed).certificate_issues == []
    assert "covers the networks alone" in ldmrt("inspect", changed).out
    ran = ldmrt("verify", changed)
    assert ran.code == 0, ran.err
    assert "covers the networks alone" in ran.err


@pytest.mark.parametrize("key", ["figures", "rows", "pictures"])
def test_a_certificate_of_nothing(changed: Path, key: str) -> None:
    rewrite(changed, lambda manifest: manifest["certificate"].update({key: []}))
    assert any("was measured" in line for line in warned(changed))


def reference(path: Path) -> Path:
    (found,) = path.glob("reference-*.npz")
    return found


def change_reference(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Another reference under its own name, its digits, and a manifest written anew."""
    old = reference(path)
    with np.load(old) as file:
        arrays = dict(file)
    change(arrays)
    made = io.BytesIO()
    np.savez_compressed(made, **arrays)  # type: ignore[arg-type]
    replace_reference(path, made.getvalue())


def replace_reference(path: Path, content: bytes) -> None:
    reference(path).unlink()
    name = f"reference-{hashlib.sha256(content).hexdigest()[:12]}.npz"
    (path / name).write_bytes(content)
    rewrite(path, lambda manifest: manifest["certificate"].update(reference=name))


def about(**values: Any) -> Callable[[dict[str, Any]], Any]:
    def change(arrays: dict[str, Any]) -> None:
        arrays["about"] = np.array(json.dumps(json.loads(str(arrays["about"])) | values))

    return change


def options(**values: Any) -> Callable[[dict[str, Any]], Any]:
    def change(arrays: dict[str, Any]) -> None:
        asked = json.loads(str(arrays["about"]))["options"] | values
        about(options={key: one for key, one in asked.items() if one != "absent"})(arrays)

    return change


def put(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda arrays: arrays.update({name: value(arrays[name]) if callable(value) else value})


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no cases": about(cases=[]),
    "no rows": lambda a: a.update(t=a["t"][:0], said=a["said"][:0], x=a["x"][:1]),
    "cases of another type": about(cases={"a": 1}),
    "a case too short": about(cases=[["unet", "x"]]),
    "a case without a name": about(cases=[[3, 4, [], []]]),
    "a case of nothing": about(cases=[["unet", "x", [], []]]),
    "arrays that are not there": about(cases=[["unet", "x", ["sample"], ["out_sample"]]]),
    "texts that are numbers": put("0.texts", np.zeros(3)),
    "ids that are texts": put("1.input_ids", np.array(["a"])),
    "no about": lambda a: a.pop("about"),
    "about is no JSON": put("about", np.array("{")),
    "about is deep": put("about", np.array("[" * 100000)),
    "about is a number": put("about", np.array(3)),
    "options of another type": about(options=[]),
    "an unknown option": options(file="/etc/passwd"),
    "a missing option": options(steps="absent"),
    "steps of another type": options(steps="20"),
    "a million steps": options(steps=10**6),
    "no steps": options(steps=0),
    "a truth as width": options(width=True),
    "another width": options(width=24),
    "guidance as text": options(guidance="5"),
    "pictures that are not given": about(given=["image"]),
    "a picture of another size": lambda a: (a.update(image=np.zeros((4, 4, 3), np.uint8)), about(given=["image"])(a)),
    "a scaling factor of text": about(scaling_factor="much"),
    "an infinite scaling factor": about(scaling_factor=1e400),
    "a scaling factor beyond any float": about(scaling_factor=10**400),
    "no scaling factor": about(scaling_factor=None),
    "x of halves": put("x", lambda one: one.astype(np.float16)),
    "x of another shape": put("x", lambda one: one[..., :4]),
    "x of too few rows": put("x", lambda one: one[1:]),
    "x is not finite": put("x", lambda one: one * np.float32("nan")),
    "said is infinite": put("said", lambda one: one * np.float32("inf")),
    "said is a number": put("said", np.float32(3)),
    "images of floats": put("images", lambda one: one.astype(np.float32)),
    "images of another size": put("images", lambda one: one[:, :4]),
    "no images": lambda a: a.pop("images"),
    "complex numbers": put("t", lambda one: one.astype(complex)),
    "dates": put("t", lambda one: one.astype("datetime64[s]")),
    "structures": put("t", np.zeros(3, [("a", "f8")])),
    "objects": put("t", np.array([{}], object)),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_references_of_wrong_content(ldmrt: Any, changed: Path, name: str) -> None:
    change_reference(changed, WRONG[name])
    with pytest.raises(LdmrtError) as refused:
        _ = Bundle.open(changed).reference
    assert refused.value.where == "certificate"
    assert len(str(refused.value).splitlines()) == 2
    if name in ("no cases", "no rows"):
        assert "it proves nothing\n  try: ldmrt verify" in str(refused.value)
        assert "it proves nothing" in ldmrt("verify", changed).error


def member(name: str, header: str, content: bytes = b"") -> bytes:
    """A zip file with one array, of which the header says anything."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        text = header.encode().ljust(117) + b"\n"
        file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content)
    return made.getvalue()


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 100000, 100)}"
FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "no archive": lambda content: b"PK" + content[::-1],
    "cut off": lambda content: content[: len(content) // 2],
    "its end is gone": lambda content: content[:-20],
    "a huge array is declared": lambda content: member("about", HUGE, b"1234"),
    "a negative side": lambda content: member("about", HUGE.replace("100)", "-1)")),
    "a header that is no literal": lambda content: member("about", "__import__('os').abort()"),
    "an empty text": lambda content: member("about", "{'descr': '<U0', 'fortran_order': False, 'shape': (10**12,)}"),
    "no magic": lambda content: member("about", HUGE).replace(b"\x93NUMPY", b"\x93NUMPZ"),
}


@pytest.mark.parametrize("name", list(FILES))
def test_damaged_references(changed: Path, name: str) -> None:
    replace_reference(changed, FILES[name](reference(changed).read_bytes()))
    with pytest.raises(LdmrtError, match="cannot read the stored reference"):
        _ = Bundle.open(changed).reference


def test_a_reference_that_inflates_is_not_read(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More zeros than all references may have, in a few kilobytes."""
    monkeypatch.setattr(numpy_archive, "LARGEST", 1 << 20)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("about.npy", bytes(1 << 21))
    replace_reference(changed, made.getvalue())
    with pytest.raises(LdmrtError, match="more than 10000 arrays, or more than 1 MB"):
        _ = Bundle.open(changed).reference


def test_another_reference_is_noticed(changed: Path) -> None:
    change_reference(changed, put("images", lambda one: 255 - one))
    assert any("is not the reference that was certified" in line for line in warned(changed))


@pytest.mark.parametrize("name", ["../reference-012345678901.npz", "/etc/passwd", "model_index.json", None, 3, "x\0"])
def test_a_reference_elsewhere(changed: Path, name: Any) -> None:
    rewrite(changed, lambda manifest: manifest["certificate"].update(reference=name))
    with pytest.raises(LdmrtError, match="the certificate names the reference"):
        Bundle.open(changed)
