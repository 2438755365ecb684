"""ldmrt's side, last part: draw from what optimum exported, and the table of differences.

python -m tests.interop.compare FOLDER [FAMILY ...]
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .cases import Drawn, Place, chosen
from .ours import draw

# Grey levels of 255. Both sides compute in float32 and differ in the order of sums alone, by 1e-5 or so of the largest
# value; that is far less than one level, and rounding can make one level of it. Measured: 1. Wrong words, timesteps or
# scales differ by tens, see LEAST.
TOLERANCE = 2
# What other words must make of the same noise, or the picture is too flat to prove anything.
LEAST = 10 * TOLERANCE
WIDTHS = (17, 8, 28, 9, 13)  # of the table's columns

Verdict = tuple[bool, str, str]  # whether it is well, the largest difference, what to say


def largest(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    """The largest difference in grey levels."""
    return int(np.abs(one.astype(int) - other).max())


def judge(found: Drawn, expected: Drawn, excuse: str) -> Verdict:
    """Compare. `excuse` clears ldmrt of an error of the same class."""
    if expected.error:
        return False, "", f"FAILED: ldmrt: {expected.error}"
    if found.error and found.error.partition(":")[0] == excuse.partition(":")[0]:
        return True, "", f"optimum cannot: {excuse}"
    if found.error:
        return False, "", f"FAILED: {found.error}"
    if found.images.shape != expected.images.shape:
        return False, "", f"FAILED: {found.images.shape} is not {expected.images.shape}"
    difference = largest(found.images, expected.images)
    return difference <= TOLERANCE, str(difference), "ok" if difference <= TOLERANCE else "FAILED"


def directions(place: Place) -> dict[str, Verdict]:
    """Both ways, the first also as optimum does it on CUDA."""
    exporter, back = place.drawn("optimum", "exporter"), place.drawn("optimum", "ldmrt")
    if not exporter.error:
        warnings.filterwarnings("ignore", ".*no parity certificate")  # optimum writes none
        draw(place, "optimum")
    # optimum is to blame only where it fails with its own export too, of a checkpoint that diffusers itself draws
    sound = not place.drawn("diffusers", "diffusers").error
    bundles = {
        "bundle in optimum": (place.drawn("ldmrt", "optimum"), place.drawn("optimum", "optimum")),
        "bundle in optimum, bound": (place.drawn("ldmrt", "optimum-bound"), place.drawn("optimum", "optimum-bound")),
    }
    found = {
        **({} if place.case.packs else bundles),
        "optimum's export in ldmrt": (exporter if exporter.error else back, exporter),
    }
    expected = place.drawn("ldmrt", "ldmrt")
    return {title: judge(one, expected, own.error if sound else "") for title, (one, own) in found.items()}


def words(place: Place) -> int:
    """What other words change in ldmrt's picture."""
    one, other = place.drawn("ldmrt", "ldmrt"), place.drawn("ldmrt", "ldmrt-other-words")
    return 0 if one.error or other.error else largest(one.images, other.images)


def line(*cells: object) -> str:
    """A line of the table; its last cell is as long as it must be."""
    return "".join(f"{cell!s:{width}}" for cell, width in zip(cells, WIDTHS, strict=False)) + str(cells[-1])


def main(root: Path, families: Sequence[str]) -> int:
    """Print the table; 1 if anything failed."""
    print(line("family", "task", "direction", "largest", "other words", "verdict"))
    failed = 0
    for case in chosen(families):
        place = Place(root, case)
        judged, other = directions(place), words(place)
        for title, (well, difference, verdict) in judged.items():
            if well and other < LEAST:
                well, verdict = False, "FAILED: too flat to prove anything"
            failed += not well
            print(line(case.family, case.task, title, difference, other, verdict))
    print(f"""
{failed} failed. largest: difference in grey levels of 255, at most {TOLERANCE}; other words: what another prompt makes
of the same noise, at least {LEAST}; bound: memory of outputs reserved beforehand, as optimum does on CUDA""")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
