"""Suggestions for misspelt names: what was meant, and silence where nothing is near."""

import pytest

from ldmrt.runtime import SCHEDULERS, LdmrtError, plan_from_config
from ldmrt.runtime.nearest import nearest, suggestion

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder")
BACKENDS = ("auto", "onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


@pytest.mark.parametrize(
    ("word", "names", "meant"),
    [
        ("uent", COMPONENTS, "unet"),
        ("UNet", COMPONENTS, "unet"),
        ("vae", COMPONENTS, "vae_decoder"),  # a part of two names: the first
        ("decoder", COMPONENTS, "vae_decoder"),
        ("text-encoder", COMPONENTS, "text_encoder"),
        ("text_encoder2", COMPONENTS, "text_encoder_2"),
        ("onnx", BACKENDS, "onnxruntime"),
        ("cuda", BACKENDS, "onnxruntime-cuda"),
        ("TensorRT RTX", BACKENDS, "tensorrt-rtx"),
        ("tensorrt_rtx", BACKENDS, "tensorrt-rtx"),
        ("", BACKENDS, None),
        ("+++", BACKENDS, None),
        ("directml", BACKENDS, None),
        (None, BACKENDS, None),
        (7, BACKENDS, None),
        ("unet", (), None),
        ("u" * 10**6, COMPONENTS, None),
    ],
)
def test_what_was_meant(word: object, names: tuple[str, ...], meant: str | None) -> None:
    assert nearest(word, names) == meant
    assert suggestion(word, names) == ("" if meant is None else f", did you mean {meant!r}?")


@pytest.mark.parametrize("name", [*COMPONENTS, *BACKENDS, *SCHEDULERS])
def test_a_name_means_itself(name: str) -> None:
    assert nearest(name, [*COMPONENTS, *BACKENDS, *SCHEDULERS]) == name


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("eulr", "euler"),
        ("Euler a", "euler_a"),  # as the web UI spells them
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("DPM++ SDE", "dpmpp_sde"),
        ("DPM2 a", "dpm2_a"),
        ("dpm++_3m_sde", "dpmpp_3m_sde"),
        ("heun_karas", "heun_karras"),
        ("EulerAncestralDiscreteScheduler", "euler_a"),  # as diffusers does
        ("UniPCMultistep", "unipc"),
        ("DDIMScheduler", "ddim"),
    ],
)
def test_schedulers(word: str, meant: str) -> None:
    config = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    with pytest.raises(LdmrtError) as raised:
        plan_from_config(config, 4, name=word)
    assert f"unknown scheduler {word!r}, did you mean {meant!r}?" in raised.value.problem
    assert raised.value.hint == f"--scheduler {meant}"
    assert plan_from_config(config, 4, name=meant).rows


def test_the_class_of_a_config() -> None:
    with pytest.raises(LdmrtError, match="'EulerDiscretScheduler', did you mean 'euler'"):
        plan_from_config({"_class_name": "EulerDiscretScheduler"}, 4)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("timestep_spacing", "trailling", "trailing"),
        ("beta_schedule", "scaled-linear", "scaled_linear"),
        ("final_sigmas_type", "zeros", "zero"),
        ("prediction_type", "v-prediction", "v_prediction"),
        ("prediction_type", "eps", "epsilon"),
        ("algorithm_type", "dpm-solver++", "dpmsolver++"),
    ],
)
def test_values_of_a_scheduler_config(key: str, value: str, meant: str) -> None:
    config = {"_class_name": "DPMSolverMultistepScheduler", key: value}
    with pytest.raises(LdmrtError, match=f"no {key} '.*, did you mean") as raised:
        plan_from_config(config, 4)
    assert f"did you mean {meant!r}?" in raised.value.problem
