"""Safetensors files that were made to mislead are refused, and views of honest ones are what is in them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.files.safetensors import read_safetensors


def written(path: Path, header: dict[str, Any], data: bytes, pad: int = 0) -> Path:
    text = json.dumps(header).encode() + b" " * pad
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def row(dtype: Any, shape: list[int], first: int, last: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize("pad", range(4))  # the data may begin anywhere
def test_numbers_are_those_of_the_file(pad: int, tmp_path: Path) -> None:
    numbers = np.arange(6, dtype="<f4")
    header = {"a": row("F32", [2, 3], 1, 25), "b": row("U8", [1], 0, 1), "none": row("F16", [0], 25, 25)}
    tensors, _ = read_safetensors("lora", written(tmp_path / "a", header, b"\7" + numbers.tobytes(), pad))
    np.testing.assert_array_equal(tensors["a"], numbers.reshape(2, 3))
    assert (tensors["b"].tolist(), tensors["none"].size) == ([7], 0)


@pytest.mark.parametrize(
    ("header", "problem", "found"),
    [
        ({"a": row([], [1], 0, 4)}, "is of an unsupported dtype", "[]"),
        ({"a": row({}, [1], 0, 4)}, "is of an unsupported dtype", "{}"),
        ({f"{i}": row("F32", [2], 0, 8) for i in range(99)}, "cannot read", "tensors that lie over one another"),
        ({"a": row("F32", [2], 0, 8), "b": row("F32", [1], 4, 8)}, "cannot read", "tensors that lie over one another"),
    ],
    ids=["a list", "an object", "one place many times", "overlapping"],
)
def test_misleading_headers(header: dict[str, Any], problem: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(LdmrtError, match=problem) as raised:
        read_safetensors("lora", written(tmp_path / "a", header, bytes(8)))
    assert str(raised.value.found) == found
