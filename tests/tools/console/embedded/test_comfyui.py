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
    link = comfyui.link

    def counted(*arguments: Any) -> str | None:
        nonlocal followed
        followed += 1
        return link(*arguments)

    monkeypatch.setattr(comfyui, "link", counted)
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


def graph(positive: Any, nodes: dict[str, Any], **kinds: str) -> dict[str, Any]:
    """A sampler with prompts, of which the positive one is linked to nodes by their number: inputs, and kinds."""
    inputs = {"seed": 1, "steps": 2, "positive": ["pos", 0], "negative": ["neg", 0], "latent_image": ["latent", 0]}
    return {
        "sampler": {"class_type": "KSampler", "inputs": inputs},
        "pos": {"class_type": "CLIPTextEncode", "inputs": {"text": positive, "clip": ["clip", 0]}},
        "neg": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["clip", 0]}},
        "clip": {"class_type": "CLIPLoader", "inputs": {"clip_name": "clip.safetensors"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512}},
        **{name: {"class_type": kinds[name], "inputs": each} for name, each in nodes.items()},
    }


A, B = ["a", 0], ["b", 0]
TEXTS: list[tuple[dict[str, Any], dict[str, str], str | None]] = [
    ({"a": {"value": "a cat"}}, {"a": "PrimitiveStringMultiline"}, "a cat"),
    ({"a": {"Text": "a cat"}}, {"a": "DF_Text_Box"}, "a cat"),
    ({"a": {"string": "a cat", "strip_newlines": False}}, {"a": "StringConstantMultiline"}, "a cat"),
    ({"a": {"string": "a cat", "strip_newlines": True}}, {"a": "StringConstantMultiline"}, None),
    ({"a": {"string_a": "a", "string_b": " cat"}}, {"a": "StringConcat"}, "a cat"),
    (
        {"a": {"string_a": B, "string_b": "cat", "delimiter": "|"}, "b": {"value": "a\nfat"}},
        {"a": "StringConcatenate", "b": "PrimitiveString"},
        "a\nfat|cat",
    ),
    (
        {"a": {"delimiter": "\\n", "clean_whitespace": "true", "text_b": " cat", "text_a": "a ", "text_c": " "}},
        {"a": "Text Concatenate"},
        "a\ncat",
    ),
    ({"a": {"text2": "b", "text1": "a", "text10": "c", "separator": ", "}}, {"a": "CR Text Concatenate"}, "a, b, c"),
    ({"a": {"string1": B, "string2": B}, "b": {"string": "x"}}, {"a": "JoinStrings", "b": "String Literal"}, "xx"),
    ({"a": {"text_0": "old", "text": B}, "b": {"text": "new"}}, {"a": "ShowText|pysssss", "b": "CR Text"}, "new"),
    ({"a": {"": B}, "b": {"prompt": "new"}}, {"a": "Reroute", "b": "CR Prompt Text"}, "new"),
    ({"a": {"string": "a cat", "find": "a", "replace": "b"}}, {"a": "StringReplace"}, None),
    ({"a": {"string_a": B, "string_b": "x"}, "b": {"image": "x.png"}}, {"a": "StringConcat", "b": "Florence"}, None),
    ({"a": {"string_a": A, "string_b": "x"}}, {"a": "StringConcat"}, None),  # of itself
    ({"a": {"value": ""}}, {"a": "PrimitiveString"}, ""),
    ({}, {}, None),  # linked to a node that is not there
]


@pytest.mark.parametrize(("nodes", "kinds", "prompt"), TEXTS)
def test_a_prompt_of_nodes_is_followed_or_said_to_be_computed(
    nodes: dict[str, Any], kinds: dict[str, str], prompt: str | None
) -> None:
    """By the functions of the nodes in ComfyUI, WAS, KJNodes, Comfyroll and pysssss."""
    found = comfyui.read_graph(graph(A, nodes, **kinds))
    assert found is not None
    assert (found.prompt, found.negative) == (prompt, "dog")


@pytest.mark.parametrize("text", ["", "x"])
def test_texts_that_double_are_not_written_out(text: str) -> None:
    """Each node joins the one before with itself: 2**30 texts, read a node at a time, up to a length."""
    nodes = {str(i): {"string_a": [str(i - 1), 0], "string_b": [str(i - 1), 0]} for i in range(1, 31)}
    kinds = dict.fromkeys(nodes, "StringConcatenate") | {"0": "PrimitiveString"}
    found = comfyui.read_graph(graph(["30", 0], nodes | {"0": {"value": text}}, **kinds))
    assert found is not None
    assert found.prompt == (None if text else "")


def test_a_long_chain_of_texts_is_computed() -> None:
    nodes = {str(i): {"string_a": [str(i - 1), 0], "string_b": "x"} for i in range(1, NODES)}
    kinds = dict.fromkeys(nodes, "StringConcatenate") | {"0": "PrimitiveString"}
    found = comfyui.read_graph(graph([str(NODES - 1), 0], nodes | {"0": {"value": "x"}}, **kinds))
    assert found is not None
    assert found.prompt is None


def test_each_prompt_is_followed_through_its_own_input() -> None:
    """A ControlNet's node has both, and a zeroed-out prompt is none."""
    control = {"positive": ["pos", 0], "negative": ["neg", 0], "strength": 1.0}
    nodes = graph("a cat", {"control": control}, control="ControlNetApplyAdvanced")
    nodes["sampler"]["inputs"] |= {"positive": ["control", 0], "negative": ["control", 1]}
    found = comfyui.read_graph(nodes)
    assert found is not None
    assert (found.prompt, found.negative) == ("a cat", "dog")
    nodes = graph("a cat", {"zero": {"conditioning": ["pos", 0]}}, zero="ConditioningZeroOut")
    nodes["sampler"]["inputs"]["negative"] = ["zero", 0]
    found = comfyui.read_graph(nodes)
    assert found is not None
    assert (found.prompt, found.negative) == ("a cat", "")


# A sampler of two prompts, which tests put other nodes into.
SAMPLER: dict[str, Any] = {"seed": 7, "steps": 25, "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}


def encodes(text: object) -> dict[str, Any]:
    return {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["4", 1]}}


def told(**changed: Any) -> tuple[str | None, str | None]:
    """The prompts of a graph with other nodes."""
    nodes = {"4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}}}
    nodes |= {"3": {"class_type": "KSampler", "inputs": SAMPLER}, "6": encodes("a cat"), "7": encodes("dog")}
    found = comfyui.read_graph(nodes | changed)
    assert found is not None
    return found.prompt, found.negative


def test_prompts_that_are_combined_stand_in_a_line_each() -> None:
    combine = {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["10", 0], "conditioning_2": ["11", 0]},
    }
    area = {"class_type": "ConditioningSetArea", "inputs": {"conditioning": ["12", 0], "width": 64}}
    nodes = {"6": combine, "10": encodes("one"), "11": area, "12": encodes("two")}
    assert told(**nodes) == ("one\ntwo", "dog")
    assert told(**(nodes | {"12": encodes("one")})) == ("one", "dog")
    assert told(**(nodes | {"12": encodes(["4", 1])})) == (None, "dog")  # one of them is computed
    assert told(**(nodes | {"12": {"class_type": "ConditioningZeroOut", "inputs": {}}}))[0] == "one"


def test_a_loader_that_encodes_both_prompts() -> None:
    texts = {"ckpt_name": "v1-5.safetensors", "positive": "a cat", "negative": "dog"}
    sampler = {"class_type": "KSampler", "inputs": SAMPLER | {"positive": ["4", 1], "negative": ["4", 2]}}
    loader = {"class_type": "Efficient Loader", "inputs": texts}
    assert told(**{"3": sampler, "4": loader}) == ("a cat", "dog")


def test_a_node_that_says_nothing_readable_is_not_an_empty_prompt() -> None:
    assert told(**{"6": {"class_type": "Unknown", "inputs": {"style": "a cat"}}}) == (None, "dog")
    assert told(**{"6": encodes("")}) == ("", "dog")
