"""`ldmrt bench` measures every stage of an image; no test asks for a speed."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ldmrt.runtime import Request
from ldmrt.runtime import open as open_pipeline
from ldmrt.tools.commands.bench import Spread, bench, overlapped, stages, trades

FOUR_STEPS = Request("a red apple", num_inference_steps=4)


def test_stages_add_up_to_the_picture(bundle: Path) -> None:
    rows = {row.stage: row for row in stages(open_pipeline(bundle, check=False), FOUR_STEPS, 3)}
    assert {name: row.calls for name, row in rows.items()} == {
        "text_encoder": 3, "unet": 12, "vae_decoder": 3, "outside networks": 3, "picture": 3,
    }  # fmt: skip
    parts = sum(row.share for name, row in rows.items() if name != "picture")
    assert rows["picture"].share == pytest.approx(1)
    assert parts == pytest.approx(1)  # what is outside is the rest, so this holds to rounding
    assert all(0 < row.p50 <= row.p95 for row in rows.values())


def test_spread() -> None:
    spread = Spread.of("unet", [0.2, 0.1, 0.4, 0.3, 1.0], 4.0)
    assert (spread.calls, spread.p50, spread.p95, spread.share) == (5, 0.3, 1.0, 0.5)


def test_overlap_is_a_ratio_of_the_same_pictures() -> None:
    """Here two at a time, whatever they are: half."""
    asked: list[tuple[str, int]] = []

    def pipeline(request: Request) -> None:
        asked.append((request.prompts[0], request.seeds[0]))
        time.sleep(0.02)

    def draw(requests: list[Request]) -> Iterator[None]:
        for one, other in zip(requests[::2], requests[1::2], strict=True):
            asked.append((one.prompts[0], one.seeds[0]))
            pipeline(other)
            yield None

    both: Any = SimpleNamespace(generate=pipeline, draw=draw)
    found = overlapped(both, Request("a red apple", num_inference_steps=2), 4)
    assert 0 < found < 1  # half, but for a machine that is busy
    assert len(set(asked)) == len(asked) == 3 * 2 * 4


class Drawn:
    """A pipeline that is twice as fast with a deep cache, and off by as many grey levels as it leaves out."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def generate(self, request: Request) -> Any:
        every = request.deep_cache or 1
        self.asked.append((request.seeds[0], every))
        time.sleep(0.02 if every > 1 else 0.04)
        return SimpleNamespace(pixels=np.full((1, 8, 8, 3), 99 + every, np.uint8))


def test_deep_caches_are_drawn_in_turns() -> None:
    pipeline: Any = Drawn()
    found = trades(pipeline, FOUR_STEPS, 3, [2, 5])
    assert pipeline.asked == [(seed, every) for seed in (0, 0, 1, 2) for every in (1, 2, 5)]
    assert [one.deep_cache for one in found] == [2, 5]
    for one in found:
        assert one.seconds >= 0.02
        assert one.ratio < 1  # half, but for a machine that is busy
        assert one.psnr == one.least == pytest.approx(20 * np.log10(255 / (one.deep_cache - 1)))


def test_command_writes_what_it_shows(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = CliRunner().invoke(bench, [str(bundle), "--pictures", "1", "--steps", "2", "--overlap", "--json", str(out)])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["cold_start_seconds"] > 0
    assert found["peak_bytes"] > 10e6
    assert found["about"]["steps"] == 2
    assert f"1 requests that overlap: {found['overlapped']:.2f} of their time one by one" in done.output
    for row in found["stages"]:
        assert f"{row['p50'] * 1e3:.2f}" in done.output
