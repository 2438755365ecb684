"""What a graph of ComfyUI says of its image, however large it is and however its nodes are linked."""

from typing import Any

import pytest

from ldmrt.runtime.pipeline.infotext.text import read_infotext
from ldmrt.tools.console.drawing.embedded import comfyui

NODES = 4000


def chain(number: int) -> dict[str, Any]:
    """Samplers of which each starts from the one before."""
    before = range(-1, number - 1)
    return {
        str(i + 1): {
            "class_type": "KSampler",
            "inputs": {"seed": i + 1, "latent_image": [str(i), 0], "positive": [str(i), 0]},
        }
        for i in before
    }


GRAPHS: dict[str, dict[str, Any]] = {
    "chain": chain(NODES),
    "backwards": dict(reversed(chain(NODES).items())),
    "star": {
        "0": {"class_type": "EmptyLatentImage", "inputs": {"width": 512}},
        **{
            str(i): {"class_type": "KSampler", "inputs": {"seed": i, "latent_image": ["0", 0], "positive": ["0", 0]}}
            for i in range(1, NODES)
        },
    },
    "circle": chain(NODES)
    | {"0": {"class_type": "KSampler", "inputs": {"seed": 0, "latent_image": [str(NODES - 1), 0]}}},
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_walked_a_few_times_however_many_nodes_sample(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links that are followed, not seconds: once each to find the last sampler, its settings and its prompts."""
    followed = 0
    link = comfyui._link

    def counted(*arguments: Any) -> str | None:
        nonlocal followed
        followed += 1
        return link(*arguments)

    monkeypatch.setattr(comfyui, "_link", counted)
    found = comfyui.read_graph(GRAPHS[name])
    assert found is not None
    links = sum(len(node["inputs"]) for node in GRAPHS[name].values())
    assert links < followed < 8 * links  # and one by one, half of NODES times


def test_the_last_sampler_is_that_which_no_other_starts_from() -> None:
    found = comfyui.read_graph(GRAPHS["chain"])
    assert found is not None
    assert found.settings["seed"] == NODES - 1
    assert comfyui.read_graph(GRAPHS["backwards"]) == found


@pytest.mark.parametrize(
    "unit", ["a", "a ", 'a1: "', 'a1: "\\"', '\\"', "a1: x, ", "ab:  ", "Negative prompt: a\n", ":", '"', "\n ", "a1:"]
)
@pytest.mark.parametrize("before", ["", 'a1: "', "ab: 1, cd: 2, ef: 3, gh: "])
def test_a_text_of_settings_is_read_in_one_pass(unit: str, before: str) -> None:
    """In 200,000 characters, of which a pass for each would take hours."""
    read_infotext(before + unit * (200_000 // len(unit)))
