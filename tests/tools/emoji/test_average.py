"""The average of two decoders: its share of either, float16, and an encoder that stays to the bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.emoji.average import WEIGHTS, average

SHIPPED = {
    "encoder.a": torch.tensor([0.1, 3.0]).half(),
    "quant_conv.a": torch.tensor([1 / 3]).half(),
    "decoder.a": torch.tensor([1.0, -2.0]).half(),
    "post_quant_conv.a": torch.tensor([0.5]).half(),
}
TRAINED = {
    "encoder.a": SHIPPED["encoder.a"].float(),
    "quant_conv.a": SHIPPED["quant_conv.a"].float(),
    "decoder.a": torch.tensor([2.0, 1 / 7]),
    "post_quant_conv.a": torch.tensor([-0.7]),
}


def saved(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    """Write the weights of an autoencoder to a folder, and return the folder."""
    (folder / WEIGHTS).parent.mkdir(parents=True)
    save_file(weights, folder / WEIGHTS)
    return folder


def test_only_the_decoder_is_averaged(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    average(saved(tmp_path / "old", SHIPPED), saved(tmp_path / "new", TRAINED), 0.25, out)
    found = load_file(out)
    assert {weight.dtype for weight in found.values()} == {torch.float16}
    for name in ("encoder.a", "quant_conv.a"):
        assert torch.equal(found[name], SHIPPED[name])
    for name in ("decoder.a", "post_quant_conv.a"):
        expected = 0.75 * SHIPPED[name].double() + 0.25 * TRAINED[name].double()
        assert torch.equal(found[name], expected.half())


@pytest.mark.parametrize(("share", "source"), [(0.0, SHIPPED), (1.0, TRAINED)])
def test_a_share_of_all_is_one_of_the_two(share: float, source: dict[str, torch.Tensor], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    average(saved(tmp_path / "old", SHIPPED), saved(tmp_path / "new", TRAINED), share, out)
    assert all(torch.equal(weight, source[name].half()) for name, weight in load_file(out).items())


@pytest.mark.parametrize(
    "change",
    [
        {"encoder.a": torch.tensor([0.2, 3.0])},
        {"quant_conv.a": torch.zeros(2)},
        {"decoder.a": torch.zeros(3)},
        {"decoder.b": torch.zeros(1)},
    ],
)
def test_another_autoencoder_is_refused(change: dict[str, torch.Tensor], tmp_path: Path) -> None:
    old, new = saved(tmp_path / "old", SHIPPED), saved(tmp_path / "new", {**TRAINED, **change})
    with pytest.raises(LdmrtError, match="is not a training of the decoder of"):
        average(old, new, 0.5, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
