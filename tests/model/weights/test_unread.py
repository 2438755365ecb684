"""Weights that are cast when they are read, and pages of files that are taken out of memory."""

from pathlib import Path

import pytest
import torch

from ldmrt.model.weights import mapping
from ldmrt.model.weights import unread as module
from ldmrt.model.weights.mapping import is_mapped, release
from ldmrt.model.weights.unread import cast_later, leave_unread, numbers, read_alone, unread
from ldmrt.model.weights.weights import open_weights, write

SHAPE = (512, 256)
TOLD = pytest.mark.skipif(not mapping.PAGES.exists(), reason="this system does not tell which pages are in memory")


def stored(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    """A parameter that lies in a mapped file."""
    numbers = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    write("unet", folder / "x.safetensors", {"a": torch.ones(5000), "b": numbers, "c": torch.ones(5000)}, dtype)
    return torch.nn.Parameter(open_weights("unet", folder / "x.safetensors")["b"].read())


def pages(tensor: torch.Tensor) -> int:
    """How many whole pages of a tensor are in memory."""
    first, last = -(-tensor.data_ptr() // 4096), (tensor.data_ptr() + tensor.nbytes) // 4096
    with mapping.PAGES.open("rb") as file:
        file.seek(8 * first)
        entries = file.read(8 * (last - first))
    return sum(int.from_bytes(entries[i : i + 8], "little") >> 63 for i in range(0, len(entries), 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("held", [torch.float16, torch.bfloat16, torch.float32])
def test_read_is_what_a_cast_at_once_gives(held: torch.dtype, dtype: torch.dtype, tmp_path: Path) -> None:
    weight = stored(tmp_path, held)
    expected = weight.detach().clone().to(dtype)
    cast_later(weight, torch.float16)  # another one before it changes nothing
    cast_later(weight, dtype)
    assert (weight.dtype, weight.shape) == (dtype, SHAPE)
    for turn in (lambda tensor: tensor, torch.t, lambda tensor: tensor.reshape(256, 512)):
        found = read_alone(turn(weight))  # type: ignore[no-untyped-call]
        assert found.dtype == dtype
        assert torch.equal(found, turn(expected))  # type: ignore[no-untyped-call]
        assert not is_mapped(found)
    with pytest.raises(AssertionError, match="a view of a part"):
        read_alone(weight[:1])


@TOLD
def test_nothing_of_a_weight_is_in_memory_but_while_it_is_read(tmp_path: Path) -> None:
    weight = stored(tmp_path)
    before = weight.detach()
    cast_later(weight, torch.float16)
    assert pages(weight) == pages(before) == 0
    assert read_alone(weight).isfinite().all()
    assert pages(weight) == pages(before) == 0
    assert before.isfinite().all()
    assert pages(before) == before.nbytes // 4096 - 1  # it begins within a page
    release(before.T)
    assert pages(before) == 0


def test_what_was_written_to_a_mapped_file_is_kept(tmp_path: Path) -> None:
    weight = stored(tmp_path)
    with torch.no_grad():
        weight.mul_(3)
    expected = weight.detach().clone()
    release(weight.detach())
    assert torch.equal(weight.detach(), expected)
    cast_later(weight, torch.float16)
    assert torch.equal(read_alone(weight), expected.half())


def test_a_computed_weight_is_left_unread_only_where_that_is_asked_for() -> None:
    weight, asked = torch.randn(SHAPE), []

    def read() -> torch.Tensor:
        asked.append(1)
        return weight * 1

    assert unread(weight, read) is weight
    with leave_unread():
        zeros, small = unread(weight, read), torch.ones(9)
        assert unread(small, read) is small
    assert (zeros.dtype, zeros.shape, zeros.count_nonzero()) == (weight.dtype, weight.shape, 0)
    assert not asked
    assert torch.equal(numbers(zeros.T), weight.T)
    cast_later(zeros, torch.float16)
    assert torch.equal(read_alone(zeros), weight.half())
    assert len(asked) == 2
    copy = zeros.clone()  # which stands for nothing
    assert torch.equal(numbers(copy), copy)


def test_small_weights_and_those_in_memory_are_cast_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for weight in (torch.nn.Parameter(torch.randn(SHAPE)), stored(tmp_path)):
        expected = weight.detach().half()
        if is_mapped(weight):
            monkeypatch.setattr(module, "SMALL", weight.numel() * 2)
        cast_later(weight, torch.float16)
        assert torch.equal(weight.detach(), expected)
        assert torch.equal(read_alone(weight), expected)
