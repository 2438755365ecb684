"""`ldmrt generate --lora`: it draws with the file, records it, and the image is drawn again with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from ldmrt.runtime.files.reading import sha256
from ldmrt.runtime.files.safetensors import content_sha256
from ldmrt.tools.console.drawing.embedded.programs import describe

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"  # (32, 24)


@pytest.fixture
def style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the current folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    factors = {"up": rng.standard_normal((32, 2), np.float32), "down": rng.standard_normal((2, 24), np.float32)}
    save_file(
        {f"{LINEAR}.lora_{part}.weight": factor for part, factor in factors.items()}, tmp_path / "style.safetensors"
    )
    return tmp_path / "style.safetensors"


def test_the_option_and_the_tag_draw_the_same(ldmrt: Any, bundle: Path, style: Path) -> None:
    words = ("generate", bundle, "--steps", 2, "--seed", 3)
    assert ldmrt(*words, "two pears", "-o", "plain.png").code == 0
    assert ldmrt(*words, "two pears", "--lora", f"{style.name}:0.5", "-o", "a.png").code == 0
    tag = ("two pears<lora:style:0.5>", "--prompt-syntax", "a1111", "--lora", style.name)
    assert ldmrt(*words, *tag, "-o", "b.png").code == 0
    plain, option, tagged = (np.asarray(Image.open(name)) for name in ("plain.png", "a.png", "b.png"))
    assert (option != plain).any()
    assert (option == tagged).mean() > 0.99  # the a1111 syntax scales embeddings by a mean that is 1 but for rounding
    made = describe("test", Path("a.png")).parameters["made"]  # type: ignore[index]
    assert made["request"]["loras"] == {"style": 0.5}
    assert made["loras"]["style"]["sha256"] == sha256(style)
    text = Image.open("a.png").info["parameters"]
    assert text.startswith("two pears <lora:style:0.5>\n")
    assert f'Lora hashes: "style: {content_sha256(style)[:12]}"' in text
    assert Image.open("b.png").info["parameters"].startswith("two pears<lora:style:0.5>\n")
    assert "Lora hashes" not in Image.open("plain.png").info["parameters"]
    assert "loras" not in describe("test", Path("plain.png")).parameters["made"]  # type: ignore[index]


def test_an_image_is_drawn_again_with_the_same_file(ldmrt: Any, bundle: Path, style: Path, tmp_path: Path) -> None:
    words = ("generate", bundle, "--steps", 2, "two pears", "--lora", f"{style}:0.5", "-o", "a.png")
    assert ldmrt(*words).code == 0
    again = ldmrt("replay", "a.png", "--bundle", bundle)
    assert (again.code, again.out.startswith("identical")) == (0, True)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    style.rename(moved / style.name)
    assert "style.safetensors is gone" in ldmrt("replay", "a.png", "--bundle", bundle).error
    assert ldmrt("replay", "a.png", "--bundle", bundle, "--inputs", moved).code == 0
    (moved / style.name).write_bytes((moved / style.name).read_bytes()[:-4] + b"\0\0\0\0")
    assert "is not the file that" in ldmrt("replay", "a.png", "--bundle", bundle, "--inputs", moved).error


def test_two_files_of_one_name_are_refused(ldmrt: Any, bundle: Path, style: Path) -> None:
    ran = ldmrt("generate", bundle, "two pears", "--lora", style, "--lora", f"other/{style.name}", "-o", "a.png")
    assert "two LoRAs have one name" in ran.error
    assert not Path("a.png").exists()
