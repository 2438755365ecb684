"""ONNX files that are written, and ONNX's own checks of them."""

from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line


def write_graph(component: str, what: str, model: Any, path: Path) -> None:
    """Write a graph whose weights, if any, stay in a file beside `path`, and check it."""
    import onnx

    onnx.save(model, str(path))
    check_graph(component, what, path)


def check_graph(component: str, what: str, path: Path) -> None:
    """An `LdmrtError` where the file is not valid, or its shapes do not follow from one another."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise LdmrtError(component, f"{what} is not valid", found=first_line(error)) from None
