"""The verifier itself: faults that are planted in a bundle are caught, and laid at the right door."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.parity.origin import other_origin
from ldmrt.export.parity.record import record
from ldmrt.model import Checkpoint, load
from ldmrt.runtime import Bundle, Certificate, LdmrtError
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.recording import Recording
from ldmrt.runtime.parity.certify import certify
from ldmrt.runtime.parity.compare import compare
from ldmrt.runtime.parity.tolerances import tolerances
from ldmrt.runtime.samplers.guidance import Guidance

from ...conftest import tiny_checkpoint
from ...support.damage.bundle_faults import (
    Plant,
    attribute,
    config,
    graph,
    halved,
    inputs,
    lines,
    node_of,
    operator,
    regrouped,
    skipped,
    space,
    swapped,
    truthful,
    weight,
)
from ...support.pipelines import randomise

pytestmark = pytest.mark.slow  # an export that no other test shares
PROMPT = "a red apple, noto style, blue background"
RESNET, BLOCK = "mid_block.resnets.0", "down_blocks.0.attentions.0.transformer_blocks.0"
DECODER, ENCODER = "decoder.mid_block.resnets.0", "encoder.mid_block.resnets.0"
DOUBLED = "decoder.up_blocks.0.upsamplers.0.conv.weight"
LAYER = "encoder.layers.0"
UNET, TEXT, DECODE, ENCODE = "unet", "text_encoder", "vae_decoder", "vae_encoder"


def one_more(value: np.ndarray) -> np.ndarray:
    """One number of it, a hundredth more."""
    value.flat[0] += 0.01
    return value


FAULTS: dict[str, tuple[Plant, str]] = {
    "one number of a kernel": (weight(UNET, f"{RESNET}.conv1.weight", one_more), UNET),
    "two kernels swapped": (swapped(UNET, f"{RESNET}.conv1.weight", f"{RESNET}.conv2.weight"), UNET),
    "a kernel transposed": (weight(UNET, f"{RESNET}.conv1.weight", lambda v: v.swapaxes(2, 3)), UNET),
    "a kernel flipped": (weight(UNET, f"{RESNET}.conv2.weight", lambda v: v[..., ::-1]), UNET),
    "a bias dropped": (weight(UNET, f"{RESNET}.conv1.bias", np.zeros_like), UNET),
    "a weight rounded to float16": (weight(UNET, f"{RESNET}.conv1.weight", lambda v: v.astype(np.float16)), UNET),
    "a GroupNorm's eps": (attribute(UNET, f"{RESNET}.norm1/InstanceNormalization", "epsilon", 1e-3), UNET),
    "a GroupNorm's groups": (regrouped(UNET, f"{RESNET}.norm1", 4), UNET),
    "a LayerNorm's eps": (attribute(UNET, f"{BLOCK}.norm1/LayerNormalization", "epsilon", 1e-3), UNET),
    "attention's scale": (attribute(UNET, f"{BLOCK}.attn1/Attention", "scale", 0.5), UNET),
    "timestep angles in float16": (halved(UNET, "Mul"), UNET),
    "timesteps in float16": (halved(UNET, "timestep"), UNET),
    "sine and cosine swapped": (inputs(UNET, "Concat", [1, 0]), UNET),
    "a skip concatenated in the other order": (inputs(UNET, "Concat_1", [1, 0]), UNET),
    "a residual left out": (skipped(UNET, f"{RESNET}/Add_1"), UNET),
    "the time embedding left out": (skipped(UNET, f"{RESNET}/Add"), UNET),
    "cross-attention left out": (skipped(UNET, f"{BLOCK}/Add_1"), UNET),
    "tanh's GELU": (attribute(UNET, f"{BLOCK}.ff.net.0/Gelu", "approximate", "tanh"), UNET),
    "a convolution's padding": (
        graph(UNET, lambda g: _pad_end(node_of(g, "down_blocks.0.downsamplers.0.conv/Conv"))),
        UNET,
    ),
    "positions shifted by one": (weight(TEXT, "embedding_1", lambda v: np.roll(v, 1, axis=1)), TEXT),
    "the causal mask left out": (inputs(TEXT, f"{LAYER}.self_attn/Attention", [0, 1, 2]), TEXT),
    "another activation": (operator(TEXT, f"{LAYER}.mlp.activation_fn/Sigmoid", "Tanh"), TEXT),
    "the last norm's gain": (weight(TEXT, "final_layer_norm.weight", np.ones_like), TEXT),
    "one number of a word": (weight(TEXT, f"{LAYER}.mlp.fc1.bias", one_more), TEXT),
    "a bias of the decoder": (weight(DECODE, f"{DECODER}.conv2.bias", np.zeros_like), DECODE),
    "two pixels of an upsampling swapped": (swapped(DECODE, f"{DOUBLED}.01", f"{DOUBLED}.10"), DECODE),
    "eps of the decoder": (attribute(DECODE, f"{DECODER}.norm2/InstanceNormalization", "epsilon", 1e-3), DECODE),
    "attention of the decoder left out": (skipped(DECODE, "decoder.mid_block.attentions.0/Add", 1), DECODE),
    "a kernel of the encoder transposed": (
        weight(ENCODE, f"{ENCODER}.conv1.weight", lambda v: v.swapaxes(2, 3)),
        ENCODE,
    ),
    "mean and variance swapped": (weight(ENCODE, "quant_conv.weight", lambda v: np.roll(v, 4, axis=0)), ENCODE),
    "schedule": (config("scheduler/scheduler_config.json", beta_end=0.0121), "scheduler"),
    "schedule, by one step": (config("scheduler/scheduler_config.json", steps_offset=0), "scheduler"),
    "prediction": (config("scheduler/scheduler_config.json", prediction_type="v_prediction"), "scheduler"),
    "another solver": (config("scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler"), "scheduler"),
    "scaling factor, by a thousandth": (space(scaling_factor=0.18215 * 1.001), "scaling factor"),
    "pad token": (config("tokenizer/tokenizer_config.json", pad_token="!"), "tokenizer"),
    "half of the merges lost": (lines("tokenizer/merges.txt", lambda merges: merges[: len(merges) // 2]), "tokenizer"),
}


# Constants and norms are compared with the checkpoint's, to the bit.
SEEN = ["one number of a kernel", "two kernels swapped", "a kernel transposed", "a bias dropped", "a GroupNorm's eps",
        "a weight rounded to float16", "a GroupNorm's groups", "a LayerNorm's eps", "positions shifted by one",
        "the last norm's gain", "eps of the decoder", "mean and variance swapped",
        "two pixels of an upsampling swapped"]  # fmt: skip


def _pad_end(node: object) -> None:
    """From one row on every side to two at the end."""
    pads = next(one for one in node.attribute if one.name == "pads")  # type: ignore[attr-defined]
    pads.ints[:] = [0, 0, 2, 2]


@dataclass(frozen=True)
class Made:
    """A model of which no weight hides a mistake, its bundle, and what PyTorch computes."""

    checkpoint: Checkpoint
    bundle: Path
    reference: Recording


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("mutations")
    tiny = tiny_checkpoint()
    for seed, network in enumerate(tiny.networks.values()):
        randomise(network, seed)
    tiny.save(folder / "checkpoint")
    loaded = load(folder / "checkpoint")
    for _ in export_bundle(loaded, folder / "bundle"):
        pass
    return Made(loaded, folder / "bundle", record(loaded, PROMPT))


def measured(bundle: Path, reference: Recording) -> Certificate:
    opened = Bundle.open(bundle)
    pipeline = open_pipeline(bundle, check=False)
    certificate = certify(list(compare(pipeline, "onnxruntime", reference, tolerances(opened))), opened, reference)
    pipeline.close()
    return certificate


def test_a_clean_bundle_passes(made: Made) -> None:
    certificate = measured(made.bundle, made.reference)
    assert certificate.within
    assert certificate.culprit == ""
    assert other_origin(Bundle.open(made.bundle), made.checkpoint) == []
    # two libraries take sums in another order: all of them exactly equal would be a thing compared with itself
    assert {one.component for one in certificate.figures if one.relative > 0} == {
        *(UNET, TEXT, DECODE, ENCODE),
        *(f"{name}_tile" for name in (DECODE, ENCODE)),
    }


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_is_caught_and_laid_at_its_door(name: str, made: Made, tmp_path: Path) -> None:
    plant, culprit = FAULTS[name]
    bundle = tmp_path / "bundle"
    shutil.copytree(made.bundle, bundle)
    plant(bundle)
    truthful(bundle)
    certificate = measured(bundle, made.reference)
    assert certificate.culprit == culprit
    blamed = {one.component for one in certificate.figures if not one.within}
    assert blamed <= {culprit, f"{culprit}_tile"}  # a part, which has the same weights
    facts = other_origin(Bundle.open(bundle), made.checkpoint)  # what can be seen without running
    assert all(culprit in fact for fact in facts)
    if name in SEEN:
        assert facts


def test_the_least_change_of_eps_is_seen(made: Made, tmp_path: Path) -> None:
    """1e-6 for 1e-5 moves a decoder by no more than rounding does: the graph itself says it."""
    bundle = tmp_path / "bundle"
    shutil.copytree(made.bundle, bundle)
    attribute(DECODE, f"{DECODER}.norm1/InstanceNormalization", "epsilon", 1e-5)(bundle)
    truthful(bundle)
    facts = other_origin(Bundle.open(bundle), made.checkpoint)
    assert facts == [f"vae_decoder: epsilon of {DECODER}.norm1 is {np.float32(1e-5)}, not {np.float32(1e-6)}"]


def test_guidance_off_by_one(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    combine = Guidance.combine
    monkeypatch.setattr(
        Guidance, "combine", lambda self, *given: combine(replace(self, weights=_more(self.weights)), *given)
    )
    certificate = measured(made.bundle, made.reference)
    assert certificate.culprit == "guidance or conditioning"


def _more(w: np.ndarray) -> np.ndarray:
    """[1 - g, g] -> [-g, 1 + g]."""
    changed = w.copy()
    changed[:, 0] -= 1
    changed[:, 1] += 1
    return changed


def test_noise_of_another_seed(made: Made) -> None:
    other = replace(made.reference.trajectory, options={**made.reference.trajectory.options, "seed": 1})
    certificate = measured(made.bundle, replace(made.reference, trajectory=other))
    assert certificate.culprit == "scheduler"  # which answers for the latents it starts from


def test_an_output_that_is_gone(made: Made, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(made.bundle, bundle)
    graph(TEXT, lambda g: g.output.remove(next(one for one in g.output if one.name == "pooler_output")))(bundle)
    truthful(bundle)
    with pytest.raises(LdmrtError, match="text_encoder: no output pooler_output"):
        measured(bundle, made.reference)
