"""Draw the images of a page whose commands draw them.

`python -m ldmrt.tools.emoji.gallery docs/drawing/gallery.md docs/images/gallery` runs every `ldmrt` command of the page
in its order. An image in out/gallery is stored in the folder as WebP, at twice its size, and an animation as it
is.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

DRAWN = "out/gallery"  # where the commands of the page draw
QUALITY = 90  # of WebP, at which a loss is hardly seen


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page, each as its words without `ldmrt`."""
    lines = re.findall(r"^    ldmrt (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def output(words: list[str]) -> Path | None:
    """Return the image that a command draws for the gallery; None if it draws none."""
    out = Path(words[words.index("-o") + 1]) if "-o" in words else None
    return out if out is not None and out.parent == Path(DRAWN) else None


def stored_path(drawn: Path, folder: Path) -> Path:
    """Return the file that an image is stored in: as WebP, and an animation in its own format."""
    return folder / (drawn.name if drawn.suffix == ".gif" else f"{drawn.stem}.webp")


def store(drawn: Path, folder: Path) -> None:
    """Store an image at twice its size, or an animation as it is."""
    from PIL import Image

    with Image.open(drawn) as image:
        if getattr(image, "is_animated", False):
            stored_path(drawn, folder).write_bytes(drawn.read_bytes())
            return
        twice = image.convert("RGB").resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS)
        twice.save(stored_path(drawn, folder), quality=QUALITY)


def gallery(page: Path, folder: Path) -> None:
    """Run the commands of a page, and store their images in a folder; the first one that fails ends it."""
    shutil.rmtree(DRAWN, ignore_errors=True)  # a file that is there would keep its name
    folder.mkdir(parents=True, exist_ok=True)
    for words in commands(page):
        print("ldmrt", shlex.join(words), flush=True)
        subprocess.run([sys.executable, "-m", "ldmrt.tools.cli", *words], check=True)
        if (drawn := output(words)) is not None:
            store(drawn, folder)


if __name__ == "__main__":
    gallery(Path(sys.argv[1]), Path(sys.argv[2]))
