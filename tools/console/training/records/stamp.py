"""Stamp a text that was generated with a hash of itself, so that one that a person wrote or edited is told from it."""

import hashlib
import re
from pathlib import Path

STAMP = re.compile(rb"\n<!-- Written by ldmrt train, which leaves an edited card alone. sha256:([0-9a-f]{64}) -->\n\Z")


def stamped(text: str) -> bytes:
    """Return a text in UTF-8 with the stamp as its last line, a comment of Markdown."""
    content = text.encode()
    digest = hashlib.sha256(content).hexdigest()
    return content + f"\n<!-- Written by ldmrt train, which leaves an edited card alone. sha256:{digest} -->\n".encode()


def may_replace(path: Path) -> bool:
    """Tell whether there is nothing at a path, or a text that is as it was generated."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return not path.is_symlink()
    except OSError:  # a folder, or a file of somebody else's
        return False
    found = STAMP.search(content)
    return found is not None and hashlib.sha256(content[: found.start()]).hexdigest().encode() == found[1]
