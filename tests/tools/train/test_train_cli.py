"""`ldmrt train`: what it refuses, how it stops and goes on, and the whole way from pictures to pictures."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.model.training.loop.states.kept import STATES, saved_states
from ldmrt.model.training.tasks import presets
from ldmrt.tools.console.training import checks

from ..console.records.cards import check_card
from .runs.saved import contents, last_state


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight squares with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(8):
        pixels = np.full((64, 64, 3), 255, np.uint8)
        pixels[8 + 2 * i : 40 + 2 * i, 16:48] = np.random.default_rng(i).integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"square number {i} on white"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["autoencoder"], "Missing option '--data'"),
        (["autoencoder", "--data", "nowhere"], "data: nothing to train on in nowhere; expected metadata.jsonl or"),
        (["autoencoder", "--data", "pictures", "--precision", "fp8"], "'fp8' is not one of 'fp32', 'bf16'"),
        (["autoencoder", "--data", "pictures", "--precision", "fp16"], "fp16 is for GPUs: a CPU computes it slowly"),
        (["autoencoder", "--data", "pictures", "--resume"], "nothing to resume; expected out/training/states"),
        (["upscaler", "--data", "pictures", "--size", "63"], "unsupported --size; expected a multiple of 2; found 63"),
        (["upscaler", "--data", "pictures", "--crop", "72"], "--crop; expected a multiple of 8 up to --size, 64"),
        (["upscaler", "--data", "pictures", "--crop", "60"], "unsupported --crop; expected a multiple of 8"),
        (["upscaler", "--data", "nowhere"], "data: nothing to train on in nowhere; expected metadata.jsonl or"),
        (["upscaler", "--data", "pictures", "--autoencoder", "nowhere"], "missing file; expected nowhere/vae/config"),
        (["ldm", "--data", "pictures"], "Missing option '--autoencoder'"),
        (["ldm", "--data", "pictures", "--autoencoder", "nowhere"], "missing file; expected nowhere/vae/config.json"),
        (["ldm", "--data", "pictures", "--autoencoder", "x", "--vocabulary", "10"],
         "Invalid value for '--vocabulary'"),
        *(
            pytest.param(["autoencoder", "--data", "pictures", *words], message)
            for words, message in (
                (["--steps", "0"], "--steps"),
                (["--batch", "0"], "--batch"),
                (["--save-every", "0"], "--save-every"),
                (["--learning-rate", "nan"], "--learning-rate"),
                (["--seed", "-1"], "--seed"),
                (["--device", "typewriter"], "--device"),
            )
        ),
    ],
)  # fmt: skip
def test_bad_words(
    ldmrt: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    (tmp_path / "pictures").symlink_to(pictures)
    monkeypatch.chdir(tmp_path)
    ran = ldmrt("train", *words[:1], "--out", "out", "--steps", 1, "--batch", 1, *words[1:])
    assert message in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.slow(minutes=0.05)
def test_autoencoder_of_other_channels(
    ldmrt: Any, pictures: Path, checkpoint: Path, tmp_path: Path, small_networks: None
) -> None:
    """The tiny checkpoint's has 4 at a factor of 2: the U-Net is made to fit, and --size says of which pictures."""
    out = tmp_path / "out"
    words = ("--data", pictures, "--autoencoder", checkpoint, "--out", out, "--steps", 1, "--batch", 1)
    assert ldmrt("train", "ldm", *words, "--size", 16).code == 0
    config = json.loads((out / "unet" / "config.json").read_text())
    assert (config["in_channels"], config["out_channels"], config["sample_size"]) == (4, 4, 8)


@pytest.mark.slow(minutes=0.1)
def test_an_upscaler_is_trained_stopped_and_used(
    ldmrt: Any, pictures: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and resumed, it has the weights of the run that was not."""
    small = {"block_out_channels": (16, 16), "norm_num_groups": 4, "num_class_embeds": 5}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    monkeypatch.setattr(presets, "UPSCALER", replace(presets.UPSCALER, **small, **kinds))
    whole, halves, bundle, out = (tmp_path / name for name in ("whole", "halves", "bundle", "out.png"))
    words = ("train", "upscaler", "--data", pictures, "--size", 16, "--crop", 8, "--batch", 2)
    words += ("--autoencoder", checkpoint, "--steps", 2, "--save-every", 1)
    ran = ldmrt(*words, "--out", whole)
    assert ran.code == 0, ran.err
    assert "step 2: PSNR " in ran.err
    check_card(whole, "upscaler", library=None)

    def stop(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr("ldmrt.model.training.tasks.upscaler.psnr_of", stop)  # after the first step
        assert ldmrt(*words, "--out", halves).code != 0
    changed = ldmrt(*words, "--out", halves, "--resume", "--crop", 12)
    assert "another --crop; expected 8; found 12" in changed.error
    assert ldmrt(*words, "--out", halves, "--resume").code == 0
    weights = Path("unet") / "diffusion_pytorch_model.safetensors"
    assert (halves / weights).read_bytes() == (whole / weights).read_bytes()

    assert ldmrt("export", whole, bundle, "--no-verify").code == 0
    assert ldmrt("upscale", bundle, pictures / "0.png", "--steps", 1, "--noise-level", 4, "-o", out).code == 0
    with Image.open(out) as image:
        assert image.size == (128, 128)


def test_resume_as_something_else(ldmrt: Any, pictures: Path, tmp_path: Path, small_networks: None) -> None:
    out = tmp_path / "out"
    words = ("train", "autoencoder", "--data", pictures, "--out", out, "--batch", 1)
    assert ldmrt(*words, "--steps", 1).code == 0
    before = contents(out / STATES)
    for more, message in (
        (["--steps", 2], "step-000001 was trained with another --steps; expected 1; found 2"),
        (["--steps", 1, "--seed", 9], "another --seed; expected 0; found 9"),
        (["--steps", 2, "--learning-rate", 1e-4, "--precision", "bf16", "--change", "steps"],
         "--learning-rate, --precision; expected --learning-rate 0.001, --precision fp32; found --learning-rate"),
        (["--steps", 2, "--change", "step"], "no setting 'step' that can be changed, did you mean 'steps'?; expected"),
    ):  # fmt: skip
        assert message in ldmrt(*words, "--resume", *more).error
        assert contents(out / STATES) == before
    assert "try: --change steps" in ldmrt(*words, "--resume", "--steps", 2).err
    assert "--change needs --resume" in ldmrt(*words, "--change", "steps").error
    ran = ldmrt(
        *words, "--resume", "--steps", 2, "--learning-rate", 1e-4, "--change", "steps", "--change", "learning-rate"
    )
    assert ran.code == 0, ran.err
    assert "learning-rate is 0.0001 after step 1, and was 0.001" in ran.err
    assert "done already: 2 of 1 steps" in ldmrt(*words, "--resume", "--steps", 1, "--learning-rate", 1e-4).err


@pytest.mark.slow
def test_the_whole_way(
    ldmrt: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_networks: None
) -> None:
    """Pictures to autoencoder to diffusion model to bundle to a picture; .ci/chain.sh goes it in the demo's size."""
    monkeypatch.setattr(checks, "SHOWN", 32)  # as a user sees
    ae, ldm, bundle, out = (tmp_path / name for name in ("ae", "ldm", "bundle", "out.png"))
    short = ["--data", pictures, "--steps", 2, "--batch", 2]
    ran = ldmrt("train", "autoencoder", *short, "--out", ae)
    assert ran.code == 0, ran.err
    assert "step 2: PSNR " in ran.err
    with Image.open(ae / "training" / "autoencoder-000002.png") as sheet:
        assert sheet.size == (8 * 66 - 2, 8 * 66 - 2)

    again = ldmrt("train", "autoencoder", *short, "--out", ae)
    assert f"{ae / STATES / 'step-000002'} exists already" in again.error
    assert "--resume to continue it, or another --out" in again.err

    ran = ldmrt("train", "ldm", *short, "--out", ldm, "--autoencoder", ae)
    assert ran.code == 0, ran.err
    assert (ldm / "training" / "ldm-000002.png").is_file()
    assert ldmrt("export", ldm, bundle).out == f"{bundle}\n"
    ran = ldmrt("generate", bundle, "square number 3 on white", "--steps", 2, "-o", out)
    assert (ran.code, ran.out) == (0, f"{out}\n")
    with Image.open(out) as image:
        assert image.size == (64, 64)


@pytest.mark.slow
@pytest.mark.usefixtures("default_signals")  # the process that is started here inherits them
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_resume_goes_on(number: int, code: int, ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    words = ["train", "autoencoder", "--data", str(pictures), "--out", str(tmp_path), "--batch", "1", "--size", "8"]
    command = [sys.executable, "-m", "ldmrt.tools.cli", *words, "--steps", "100000", "--save-every", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120  # of a machine under load; it takes seconds
        while not saved_states(tmp_path) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out) == (code, ""), err
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "training" / "lock").exists()
    assert "Traceback" not in err
    step = last_state(tmp_path)["step"]
    assert step >= 1
    assert f"stopped at step {step}; go on with --resume" in err

    ran = ldmrt(*words, "--steps", step + 2, "--resume", "--change", "steps")
    assert ran.code == 0, ran.err
    assert f"{step + 2} steps in " in ran.err
    assert last_state(tmp_path)["step"] == step + 2


def test_the_log_is_shown(ldmrt: Any, pictures: Path, tmp_path: Path, small_networks: None) -> None:
    out = tmp_path / "out"
    words = ("train", "autoencoder", "--data", pictures, "--out", out, "--batch", 2, "--size", 16)
    assert ldmrt(*words, "--steps", 3, "--log-every", 1, "--accumulate", 2).code == 0
    shown = ldmrt("train", "--show", out)
    assert shown.code == 0
    assert all(title in shown.out for title in ("step", "reconstruction", "kl", "images/s"))
    assert "loss, steps 1 to 3" in shown.out
    assert "█" in shown.out
    assert f"no log in {tmp_path}; expected {tmp_path / 'log.jsonl'}" in ldmrt("train", "--show", tmp_path).error


def test_more_parts_than_images_leave_nothing_behind(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    words = ("train", "autoencoder", "--data", pictures, "--out", tmp_path / "out", "--batch", 2)
    ran = ldmrt(*words, "--accumulate", 3)
    assert "invalid --accumulate; expected 1 to 2, the samples of a batch; found 3" in ran.error
    assert not (tmp_path / "out").exists()


def test_held_out_images_are_measured(ldmrt: Any, pictures: Path, tmp_path: Path, small_networks: None) -> None:
    out = tmp_path / "out"
    words = ("train", "autoencoder", "--data", pictures, "--out", out, "--batch", 2, "--size", 16)
    ran = ldmrt(*words, "--steps", 4, "--save-every", 2, "--validation", 0.4)
    assert ran.code == 0, ran.err
    assert "validation loss " in ran.err
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [2, 4]
    assert "loss of held-out images, steps 2 to 4" in ldmrt("train", "--show", out).out
    changed = ldmrt(*words, "--steps", 4, "--resume", "--validation", 0.3)
    assert "another --data, --validation" in changed.error or "another --validation" in changed.error


@pytest.mark.slow(minutes=0.5)
def test_a_model_of_flow_draws_what_diffusers_draws(
    ldmrt: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers
    import torch

    from ldmrt.runtime import open as open_pipeline

    two = {"block_out_channels": (16, 16), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    monkeypatch.setattr(presets, "AUTOENCODER", replace(presets.AUTOENCODER, latent_channels=4, **two, **kinds))
    one = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    unet = {**two, **one, "block_out_channels": (16,), "attention_head_dim": 2}
    monkeypatch.setattr(presets, "UNET", replace(presets.UNET, **unet))  # type: ignore[arg-type]
    ae, ldm, bundle = (tmp_path / name for name in ("ae", "ldm", "bundle"))
    words = ["--data", pictures, "--size", 16, "--steps", 2, "--batch", 2]
    assert ldmrt("train", "autoencoder", *words, "--out", ae).code == 0
    flow = ["--prediction", "flow_prediction", "--flow-shift", 3, "--timesteps", "logit_normal"]
    ran = ldmrt("train", "ldm", *words, *flow, "--autoencoder", ae, "--out", ldm)
    assert ran.code == 0, ran.err
    check_card(ae, "autoencoder")
    check_card(ldm, "ldm")
    assert ldmrt("export", ldm, bundle, "--no-verify").code == 0
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(ldm, safety_checker=None)
    start = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    expected = theirs("a square", height=16, width=16, latents=torch.from_numpy(start), **options).images.numpy()
    found = open_pipeline(bundle)("a square", latents=start, **options).latents
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())  # as every family's latents


@pytest.mark.slow
@pytest.mark.usefixtures("shared_exports")
@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_a_unet_in_pixels_is_trained_exported_and_drawn_with(
    ldmrt: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variance: str
) -> None:
    """What it writes loads in diffusers too, whose U-Net computes the same."""
    import diffusers
    import torch

    from ldmrt.model import load

    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    small = replace(
        presets.UNCONDITIONAL, block_out_channels=(16, 16), norm_num_groups=4, attention_head_dim=8, **kinds
    )
    monkeypatch.setattr(presets, "UNCONDITIONAL", small)
    out, bundle, image = (tmp_path / name for name in ("out", "bundle", "out.png"))
    words = ("train", "unconditional", "--data", pictures, "--size", 16, "--batch", 2, "--steps", 2)
    ran = ldmrt(*words, "--variance", variance, "--snr-gamma", 5, "--out", out)
    assert ran.code == 0, ran.err
    check_card(out, "unconditional")
    theirs = diffusers.DDPMPipeline.from_pretrained(out).unet
    sample, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 900])
    with torch.no_grad():
        found, expected = load(out).unet(sample, t), theirs(sample, t).sample
    assert found.shape[1] == (6 if variance == "learned_range" else 3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))  # float32
    assert ldmrt("export", out, bundle, "--no-verify").code == 0
    assert ldmrt("generate", bundle, "--steps", 3, "-o", image).code == 0
    with Image.open(image) as drawn:
        assert drawn.size == (16, 16)
    assert "expected a multiple of 2; found 17" in ldmrt(*words, "--out", tmp_path / "odd", "--size", 17).error


def test_checkpointing_changes_no_bit(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    weights, files = Path("vae") / "diffusion_pytorch_model.safetensors", []
    for name, more in (("kept", []), ("again", ["--checkpointing"])):
        words = ("--data", pictures, "--size", 16, "--batch", 2, "--steps", 2, "--warmup", 0, "--out", tmp_path / name)
        assert ldmrt("train", "autoencoder", *words, *more).code == 0
        files.append((tmp_path / name / weights).read_bytes())
    assert files[0] == files[1]
    assert "checkpointing = true" in (tmp_path / "again" / "recipe.toml").read_text()
