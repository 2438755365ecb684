"""The flags that TensorRT is asked for a network with."""

from pathlib import Path
from typing import Any

import pytest

from ldmrt.export.engines import compiler
from ldmrt.runtime import LdmrtError


@pytest.mark.parametrize(
    ("backend", "version", "asked"),
    [("tensorrt", "10.8.0.43", True), ("tensorrt", "10.16.1.11", True), ("tensorrt", "11.0.0.114", False),
     ("tensorrt-rtx", "1.7.1.116", False)],
)  # fmt: skip
def test_tensorrt_10_is_asked_for_a_strongly_typed_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, version: str, asked: bool
) -> None:
    """Else it would choose half precision, or not, by itself; later ones know no other kind of network."""
    from types import SimpleNamespace

    from polygraphy.backend import trt as polygraphy_trt
    from polygraphy.exception import PolygraphyException

    taken = []

    def network(path: str, **options: Any) -> Any:
        taken.append(options)
        raise PolygraphyException("enough")

    base = type("Base", (), {"__init__": lambda self: None})
    library = SimpleNamespace(__version__=version, ILogger=base, IProgressMonitor=base)
    monkeypatch.setattr(compiler, "library", lambda backend: library)
    monkeypatch.setattr(polygraphy_trt, "network_from_onnx_path", network)
    recipe = SimpleNamespace(backend=backend, profile=[], component="unet", target="sm89")
    with pytest.raises(LdmrtError, match="cannot build it for sm89; found enough"):
        compiler.compile_engine(tmp_path / "unet" / "model.onnx", recipe, lambda *_: True)  # type: ignore[arg-type]
    assert taken == [{"strongly_typed": asked}]
