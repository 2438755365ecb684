"""The page about certificates counts the faults that tests plant."""

import re
from pathlib import Path

from ..parity.test_mutations import FAULTS
from .masked import test_z_image_faults
from .test_planted_faults import CASES

PAGE = Path(__file__).parents[3] / "docs" / "certificate.md"


def test_the_page_has_their_numbers() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Is the verifier itself right?")[2]
    assert re.findall(r"\d+(?= faults)", section) == [
        str(len(FAULTS)),
        str(len(CASES) + len(test_z_image_faults.FAULTS)),
    ]
