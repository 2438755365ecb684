"""ONNX files, written and checked by ONNX's own checker."""

from pathlib import Path
from typing import TYPE_CHECKING

from ldmrt.runtime.errors import LdmrtError, first_line

if TYPE_CHECKING:
    from onnx import ModelProto


def write_graph(component: str, description: str, model: "ModelProto", path: Path) -> None:
    """Write a graph to `path` and check it; weights that lie in a file beside it stay there.

    Raises:
        LdmrtError: The graph is not valid; the message calls it by its `description`.
    """
    import onnx

    onnx.save(model, str(path))
    check_graph(component, description, path)


def check_graph(component: str, description: str, path: Path) -> None:
    """Check an ONNX file: operators, attributes, and that all shapes follow from one another.

    Raises:
        LdmrtError: ONNX's checker refuses the file.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise LdmrtError(component, f"{description} is not valid", found=first_line(error)) from None
