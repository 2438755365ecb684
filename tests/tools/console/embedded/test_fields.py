"""The texts in the files of images, however savers write them, and where the pixels are damaged."""

import io
import json
import struct
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.drawing.embedded.fields import opened, read_fields
from ldmrt.tools.console.drawing.embedded.programs import describe

SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 8x8"
PROMPTS = ("a café 🍐", "一只猫，一个苹果", "кот", "x")  # U+4E00 has a zero where letters of ASCII have none


def exif(comment: bytes, order: str) -> bytes:
    """EXIF that holds a user comment alone: a directory with a pointer to the one that has it."""
    entry = f"{order}HHII"
    pointer = struct.pack(f"{order}H", 1) + struct.pack(entry, 0x8769, 4, 1, 26) + bytes(4)
    inner = struct.pack(f"{order}H", 1) + struct.pack(entry, 0x9286, 7, len(comment), 44) + bytes(4)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    return b"Exif\0\0" + head + pointer + inner + comment


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("codec", ["utf-16-be", "utf-16-le", "with a mark, le", "with a mark, be"])
@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_a_comment_in_utf_16_is_read_in_either_order(
    tmp_path: Path, prompt: str, order: str, codec: str, suffix: str
) -> None:
    """`utf-16-be` is what piexif writes for AUTOMATIC1111's web UI; EXIF leaves the order open."""
    text = f"{prompt}\nNegative prompt: dog\n{SETTINGS}"
    mark = "\ufeff" if codec.startswith("with") else ""
    encoded = (mark + text).encode("utf-16-" + codec[-2:])
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (8, 8)).save(path, exif=exif(b"UNICODE\0" + encoded, order))
    found = describe("info", path)
    assert (found.prompt, found.negative, found.settings["seed"]) == (prompt, "dog", 1)


def with_texts(**texts: str) -> tuple[bytes, bytes]:
    """The file of a PNG of noise up to its pixels and from there on, with texts before them."""
    info, buffer = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_itxt(name, text, zip=True)
    Image.effect_noise((64, 64), 99).convert("RGB").save(buffer, "PNG", pnginfo=info)
    place = buffer.getvalue().index(b"IDAT") - 4
    return buffer.getvalue()[:place], buffer.getvalue()[place:]


@pytest.mark.parametrize("left", [9, 100, -30])
def test_texts_are_read_where_the_pixels_are_cut(tmp_path: Path, left: int) -> None:
    before, pixels = with_texts(parameters=f"a cat\n{SETTINGS}")
    path = tmp_path / "a.png"
    path.write_bytes(before + pixels[:left])
    assert describe("info", path).prompt == "a cat"
    with pytest.raises(LdmrtError, match=r"a\.png; expected an image"), opened("replay", path):
        pass


def test_texts_behind_the_pixels_are_read_though_these_are_damaged(tmp_path: Path) -> None:
    before, pixels = with_texts()
    text, _ = with_texts(parameters=f"a cat\n{SETTINGS}")
    chunk, end = text[text.index(b"iTXt") - 4 :], pixels.index(b"IEND") - 4
    for damage in (0, 255):
        damaged = bytearray(pixels[:end])
        damaged[20] ^= damage
        path = tmp_path / "a.png"
        path.write_bytes(before + bytes(damaged) + chunk + pixels[end:])
        assert list(read_fields("info", path)) == ["parameters"]
        if damage == 0:  # as Pillow reads them
            with Image.open(path) as image:
                assert image.text == read_fields("info", path)


def test_a_comment_of_another_program_is_not_ldmrts(tmp_path: Path) -> None:
    """Node packs of ComfyUI write their graph as JSON into the comment of an animation."""
    graph = {"1": {"class_type": "KSampler", "inputs": {"seed": 5, "latent_image": 0, "steps": 7}}}
    for number, (comment, expected) in enumerate((
        (json.dumps({"prompt": json.dumps(graph), "workflow": {}}), "ComfyUI"),
        (json.dumps({"ldmrt": "0.1.0", "prompt": "a fox"}), "ldmrt"),
    )):  # fmt: skip
        Image.new("P", (4, 4)).save(tmp_path / f"{number}.gif", comment=comment.encode())
        assert describe("info", tmp_path / f"{number}.gif").program == expected
