"""Controls at work, with networks that count their calls: who runs when, on what, and what is refused."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.pipeline.denoising.controls import open_controls
from ldmrt.runtime.samplers.guidance import classifier_free
from ldmrt.runtime.tensors import TensorSpec, conform

SIZE, ROWS = (12, 20), 4  # two pictures with guidance
SCALE = TensorSpec("conditioning_scale", "float32", ("batch",))
LATENTS = TensorSpec("sample", "float32", ("batch", 4, "height/2", "width/2"))
WORDS = TensorSpec("encoder_hidden_states", "float32", ("batch", 3, 5))
SKIP = TensorSpec("down_block_residual_0", "float32", ("batch", 2, "height/2", "width/2"))
FEATURES = tuple(
    TensorSpec(f"down_intrablock_residual_{i}", "float32", ("batch", 2, f"height/{4 * i + 4}", f"width/{4 * i + 4}"))
    for i in range(2)
)


@dataclass
class Fake:
    """An engine that gives its picture's mean times its scale, in each place."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calls: list[dict[str, NDArray[Any]]] = field(default_factory=list)

    def __call__(self, **arrays: NDArray[Any]) -> dict[str, NDArray[Any]]:
        feeds = conform("fake", self.inputs, arrays)
        assert feeds.keys() == arrays.keys()
        self.calls.append(feeds)
        picture = next(array for name, array in feeds.items() if name.endswith("_cond"))
        value = picture.mean((1, 2, 3)) * feeds["conditioning_scale"]
        sides = {"height": SIZE[0], "width": SIZE[1]}
        out = {}
        for spec in self.outputs:
            shape = [-(-sides[str(dim).split("/")[0]] // int(str(dim).split("/")[1])) for dim in spec.shape[2:]]
            out[spec.name] = np.broadcast_to(value[:, None, None, None], (len(value), 2, *shape)).astype(np.float32)
        return out

    def close(self) -> None:
        pass


def picture(kind: str, channels: int) -> TensorSpec:
    return TensorSpec(f"{kind}_cond", "float32", ("batch", channels, "height", "width"))


@pytest.fixture
def engines() -> dict[str, Fake]:
    timestep = TensorSpec("timestep", "float32", ("batch",))
    return {
        "unet": Fake((LATENTS, timestep, WORDS, SKIP, *FEATURES), (LATENTS,)),
        "controlnet_canny": Fake((LATENTS, timestep, WORDS, picture("controlnet", 3), SCALE), (SKIP,)),
        "adapter_depth": Fake((picture("adapter", 3), SCALE), FEATURES),
        "adapter_sketch": Fake((picture("adapter", 1), SCALE), FEATURES[:1]),
    }


def walk(engines: dict[str, Fake], asked: dict[str, Any], size: tuple[int, int] = SIZE) -> list[dict[str, Any]]:
    """What the U-Net is given in two rows."""
    words = {"encoder_hidden_states": np.zeros((ROWS, 3, 5), np.float32), "text_embeds": np.zeros((ROWS, 7))}
    run = open_controls(engines, asked, size, classifier_free(2, 5.0), words)
    x = np.zeros((ROWS, 4, size[0] // 2, size[1] // 2), np.float32)
    return [run(x, np.full(ROWS, t, np.float32)) for t in (900.0, 400.0)]


def grey(value: float) -> NDArray[np.uint8]:
    return np.full((*SIZE, 3), round(255 * value), np.uint8)


def test_an_adapter_runs_once_on_one_picture_and_a_controlnet_at_each_row(engines: dict[str, Fake]) -> None:
    given = walk(engines, {"canny": (grey(0.2), 2.0), "depth": (grey(0.4), 0.5), "sketch": grey(0.6)})
    times = [call["timestep"].tolist() for call in engines["controlnet_canny"].calls]
    assert times == [[900.0] * ROWS, [400.0] * ROWS]
    assert [len(engines[name].calls) for name in ("adapter_depth", "adapter_sketch")] == [1, 1]
    assert engines["adapter_depth"].calls[0]["adapter_cond"].shape == (1, 3, *SIZE)
    assert engines["adapter_sketch"].calls[0]["adapter_cond"].shape == (1, 1, *SIZE)
    for row in given:  # scaled and summed, a line for each of the U-Net's rows
        values = {name: array[:, 0, 0, 0] for name, array in row.items()}
        np.testing.assert_allclose(values[SKIP.name], [0.4] * ROWS, rtol=1e-6)  # float32
        np.testing.assert_allclose(values[FEATURES[0].name], [0.2 + 0.6] * ROWS, rtol=1e-6)
        np.testing.assert_allclose(values[FEATURES[1].name], [0.2] * ROWS, rtol=1e-6)


def test_nothing_asked_is_zeros_of_sizes_rounded_up(engines: dict[str, Fake]) -> None:
    for row in walk(engines, {}):
        assert {name: array.shape for name, array in row.items()} == {
            SKIP.name: (ROWS, 2, 6, 10),
            FEATURES[0].name: (ROWS, 2, 3, 5),
            FEATURES[1].name: (ROWS, 2, 2, 3),
        }
        assert not any(array.any() for array in row.values())


def test_what_does_not_fit_is_refused_before_anything_runs(engines: dict[str, Fake]) -> None:
    with pytest.raises(LdmrtError, match="no control 'pose' here; expected canny, depth, sketch"):
        walk(engines, {"pose": grey(0.5)})
    with pytest.raises(LdmrtError, match="control depth: invalid width or height; expected multiples of 4; found 22"):
        walk(engines, {"depth": grey(0.5)}, (12, 22))
    engines["unet"].inputs = engines["unet"].inputs[:4]
    with pytest.raises(LdmrtError, match="control depth: the U-Net here takes no down_intrablock_residual_0"):
        walk(engines, {"depth": grey(0.5)})
    engines["adapter_depth"].inputs = (picture("adapter", 4), SCALE)
    engines["unet"].inputs += FEATURES
    with pytest.raises(LdmrtError, match="control depth: takes 4 channels"):
        walk(engines, {"depth": grey(0.5)})
    assert not any(engine.calls for engine in engines.values())


def test_each_prompt_may_have_its_own_image(engines: dict[str, Fake]) -> None:
    asked = {"canny": ([grey(0.2), grey(0.6)], 2.0), "depth": [grey(0.4), grey(0.8)], "sketch": (grey(0.2), grey(0.4))}
    for row in walk(engines, asked):
        values = {name: array[:, 0, 0, 0] for name, array in row.items()}
        np.testing.assert_allclose(values[SKIP.name], [0.4, 1.2] * 2, rtol=1e-6)  # float32
        np.testing.assert_allclose(values[FEATURES[0].name], [0.6, 1.2] * 2, rtol=1e-6)
        np.testing.assert_allclose(values[FEATURES[1].name], [0.4, 0.8] * 2, rtol=1e-6)
    assert [len(engines[name].calls) for name in ("adapter_depth", "adapter_sketch")] == [1, 1]
