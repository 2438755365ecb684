"""`ldmrt train autoencoder` with all parts of its loss; today's defaults are squared error and KL, to the bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file, save_file

from ldmrt.model.networks.autoencoder import Autoencoder, kl_divergence, moments
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder
from ldmrt.model.training.data.captioned import ImageFolder, Sample
from ldmrt.model.training.diffusion.error import squared_error
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.first_stage.perceptual import GROUPS
from ldmrt.model.training.latents import to_tensor
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Losses, TrainingTask
from ldmrt.model.training.tasks import presets
from ldmrt.model.training.tasks.initialise import initialise

from ..runs.saved import last_state

WEIGHTS = "diffusion_pytorch_model.safetensors"


def words(pictures: Path, *more: object) -> list[object]:
    return ["train", "autoencoder", "--data", pictures, "--batch", 2, "--size", 16, "--warmup", 1, *more]


def test_the_defaults_take_the_steps_of_squared_error_and_kl(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    """The loss is written out; the weights are equal to the bit."""
    assert ldmrt(*words(pictures, "--steps", 3, "--out", tmp_path)).code == 0
    torch.manual_seed(0)
    vae = Autoencoder(replace(presets.AUTOENCODER, sample_size=16))
    initialise(vae)

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        x = to_tensor([sample.image for sample in samples], "cpu")
        mean, log_variance = moments(vae.encode(x))
        latents = mean + torch.exp(0.5 * log_variance) * draws.normal("latents", mean.shape[1:])
        return {"reconstruction": squared_error(vae.decode(latents), x), "kl": 1e-6 * kl_divergence(mean, log_variance)}

    run = Run(vae, Settings(steps=3, batch=2, learning_rate=1e-3, warmup=1))
    list(run.optimise(TrainingTask(ImageFolder.open(pictures, size=16), loss_of)))
    found = load_file(tmp_path / "vae" / WEIGHTS)
    assert found.keys() == run.average.keys()
    assert all(torch.equal(value, run.average[name]) for name, value in found.items())
    state = last_state(tmp_path)
    assert state.keys() == run.state().keys()


PARTS = {
    "vq": ["--kind", "vq", "--codes", 12],
    "all": ["--reconstruction", "l1", "--sum", "--log-variance", "learned", "--adversarial", 0.5, "--perceptual",
            "discriminator", "--discriminator-start", 1, "--discriminator-layers", 1],
    "averaged": ["--kind", "vq", "--codebook", "average", "--adversarial", 0.5, "--discriminator-layers", 1],
}  # fmt: skip


@pytest.mark.slow(minutes=0.24)
@pytest.mark.parametrize("name", PARTS)
def test_a_run_that_was_stopped_ends_in_the_same_bytes(name: str, ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    """And loads in diffusers and here, with equal codes and pictures."""
    more, whole, halves = ["--validation", 0.4, *PARTS[name]], tmp_path / "whole", tmp_path / "halves"
    ran = ldmrt(*words(pictures, "--steps", 4, "--schedule", "constant", "--out", whole, *more))
    assert ran.code == 0, ran.err
    assert "held-out images: PSNR" in ran.err
    for steps, resumed in ((2, []), (4, ["--resume"])):
        again = words(pictures, "--steps", steps, "--schedule", "constant", "--out", halves, *more, *resumed)
        assert ldmrt(*again).code == 0
    assert (whole / "vae" / WEIGHTS).read_bytes() == (halves / "vae" / WEIGHTS).read_bytes()
    assert (whole / "vae" / "config.json").read_bytes() == (halves / "vae" / "config.json").read_bytes()
    changed = ldmrt(
        *words(pictures, "--steps", 4, "--schedule", "constant", "--out", halves, "--resume"), "--validation", 0.4
    )
    assert "was trained with another" in changed.error
    config = json.loads((whole / "vae" / "config.json").read_text())
    x, tensors = (
        to_tensor([ImageFolder.open(pictures, size=16).draw(0, 0).image], "cpu"),
        load_file(whole / "vae" / WEIGHTS),
    )
    with torch.no_grad():
        if name == "all":
            theirs, ours = AutoencoderKL.from_pretrained(whole / "vae"), Autoencoder.from_config(config)
            ours.load_state_dict(tensors)
            latents = moments(ours.encode(x))[0]
            expected = theirs.decode(theirs.encode(x).latent_dist.mode()).sample
        else:
            theirs, ours = VQModel.from_pretrained(whole / "vae"), VQAutoencoder.from_config(config)
            ours.load_state_dict(tensors)
            latents, hidden = ours.encode(x), theirs.encode(x).latents
            assert torch.equal(ours.quantize.codes(latents).flatten(), theirs.quantize(hidden)[2][2].flatten())
            expected = theirs.decode(hidden).sample
        # 1e-4: two implementations in float32, of values of about 1
        torch.testing.assert_close(ours.decode(latents), expected, rtol=1e-4, atol=1e-4)
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    names = {"vq": {"codebook"}, "all": {"kl", "perceptual"}, "averaged": {"codebook"}}[name]
    opposing = {"adversarial", "discriminator"} if name != "vq" else set()
    parts = next(line["parts"] for line in lines if "parts" in line)
    assert parts.keys() == {"reconstruction"} | names | opposing


def test_a_perceptual_network_of_a_file(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    """It is read, logged and compared by its weights: the file may be moved, and not be changed."""
    torch.manual_seed(0)
    given, inner = {}, 3
    for k, numbers in enumerate(GROUPS):
        for n in numbers:
            given |= {f"net.slice{k + 1}.{n}.weight": torch.randn(4, inner, 3, 3)}
            given |= {f"net.slice{k + 1}.{n}.bias": torch.zeros(4)}
            inner = 4
        given[f"lin{k}.model.1.weight"] = torch.rand(1, 4, 1, 1)
    one, moved, changed, out = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors", "out"))
    save_file(given, one)
    save_file(given, moved)
    save_file(given | {"lin0.model.1.weight": torch.ones(1, 4, 1, 1)}, changed)
    more = ["--schedule", "constant", "--out", out, "--perceptual"]
    ran = ldmrt(*words(pictures, "--steps", 1, *more, one))
    assert ran.code == 0, ran.err
    parts = json.loads((out / "log.jsonl").read_text().splitlines()[0])["parts"]
    assert parts.keys() == {"reconstruction", "kl", "perceptual"}
    assert parts["perceptual"] > 0
    assert (
        "trained with another perceptual-network"
        in ldmrt(*words(pictures, "--steps", 2, *more, changed, "--resume")).error
    )
    assert ldmrt(*words(pictures, "--steps", 2, *more, moved, "--resume")).code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--perceptual", "discriminator"], "--perceptual discriminator needs a discriminator that learns"),
        (["--log-variance", "low"], "invalid --log-variance; expected a number from -50 to 50, or learned; found low"),
        (["--log-variance", "inf"], "invalid --log-variance"),
        (["--kl-weight", "nan"], "--kl-weight"),
        (["--codes", "1"], "--codes"),
        (["--perceptual", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--adversarial", "0.5"], "images are too small for --adversarial; expected sides of 24 pixels; found 16"),
    ],
)
def test_invalid_losses_are_refused(more: list[str], message: str, ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    ran = ldmrt(*words(pictures, "--steps", 1, "--out", tmp_path / "out", *more))
    assert ran.code == 2
    assert message in ran.err
    assert not list((tmp_path / "out").rglob("*.pt"))
