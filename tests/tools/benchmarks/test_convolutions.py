"""The benchmark of rewritten convolutions: that it runs two graphs of one network. What it measures is no test."""

import json
from pathlib import Path

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.tools.benchmarks.convolutions import measure

ROUNDING = 5e-6  # relative: other sums of float32; 2.1e-6 was measured between the shipped decoder's two graphs


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "fixed"), [("openvino", ["--fixed"]), ("onnxruntime", [])])
def test_both_graphs_compute_the_same(
    checkpoint: Path, backend: str, fixed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    words = [checkpoint, "--network", "vae_decoder", "--side", 16, "--calls", 3, "--backend", backend, "--json", out]
    measure([*map(str, words), *fixed], standalone_mode=False)
    written = json.loads(out.read_text())["contestants"]
    sizes = ["any sizes", "fixed sizes"] if fixed else ["any sizes"]
    assert [(one["graph"], one["sizes"]) for one in written] == [(g, s) for g in ("rewritten", "plain") for s in sizes]
    assert all(len(one["wall"]) == len(one["cpu"]) == 3 for one in written)
    errors = {one["graph"]: one["error"] for one in written}
    assert 0 < errors["plain"] <= ROUNDING  # two graphs, of which one sums otherwise
    assert capsys.readouterr().out.count("results differ by") == len(written)


def test_refused(checkpoint: Path) -> None:
    with pytest.raises(LdmrtError, match="network: no network 'encoder'; expected text_encoder, unet"):
        measure([str(checkpoint), "--network", "encoder"], standalone_mode=False)
    with pytest.raises(LdmrtError, match="only OpenVINO opens networks for fixed sizes"):
        measure([str(checkpoint), "--fixed", "--backend", "onnxruntime"], standalone_mode=False)
    with pytest.raises(LdmrtError, match="in other precisions"):
        measure([str(checkpoint), "--compute", "bf16", "--backend", "onnxruntime"], standalone_mode=False)
