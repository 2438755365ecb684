"""ONNX's own checks of a file that was written."""

from pathlib import Path

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.errors import first_line


def check_graph(component: str, what: str, path: Path) -> None:
    """An `LdmrtError` where the file is not valid, or its shapes do not follow from one another."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise LdmrtError(component, f"{what} is not valid", found=first_line(error)) from None
