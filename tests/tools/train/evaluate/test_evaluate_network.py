"""`ldmrt evaluate --measure loss` and `--measure bound`: the network itself, on images of one's own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.diffusion.bound import Chain, bits, bound_of, prior, terms
from ldmrt.model.training.draws import Draws
from ldmrt.runtime import LdmrtError, Pipeline
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.tools.commands.training.scores.network import network_scores

from ....support.pipelines import save_pipeline

TIMES = [25, 75, 125, 175, 225, 275, 325, 375, 425, 475, 525, 575, 625, 675, 725, 775, 825, 875, 925, 975]
FLOW = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0,
        "prediction_type": "flow_prediction"}  # fmt: skip


def data_of(folder: Path, size: int = 16) -> ImageFolder:
    return ImageFolder.open(folder, size=size)


def of_diffusers(checkpoint: Path, samples: list[Any]) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """The checkpoint's U-Net with the samples' captions, and their scaled latents, by diffusers and transformers."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae")
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(checkpoint / "text_encoder")
    captions, most = [sample.caption for sample in samples], tokenizer.model_max_length
    ids = tokenizer(captions, padding="max_length", max_length=most, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        context = encoder(ids)[0]
        pixels = torch.stack([torch.from_numpy(sample.image.copy()) for sample in samples]).permute(0, 3, 1, 2)
        latents = vae.encode(pixels / 127.5 - 1).latent_dist.mean * vae.config.scaling_factor

    @torch.no_grad()
    def network(x: Tensor, t: Tensor) -> Tensor:
        return unet(x, t, encoder_hidden_states=context).sample

    return network, latents


def slow_losses(
    network: Callable[[Tensor, Tensor], Tensor], x0: Tensor, config: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The slow obvious way, with diffusers' schedule and weights: one image, one timestep."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    kind = config["prediction_type"]
    noise = Draws(0, range(len(x0)), stream="loss by timestep ").normal("noise", x0.shape[1:])
    scheduler = DDPMScheduler.from_config({key: value for key, value in config.items() if key[0] != "_"})
    found: dict[str, list[list[float]]] = {"simple": [], "min_snr": []}
    for time in TIMES:
        t = torch.full((len(x0),), time)
        x = scheduler.add_noise(x0, noise, t)
        target = {"epsilon": noise, "sample": x0}.get(kind)
        target = scheduler.get_velocity(x0, noise, t) if target is None else target
        losses = torch.nn.functional.mse_loss(network(x, t), target, reduction="none").mean(dim=(1, 2, 3))
        snr = compute_snr(scheduler, t)
        least = snr.clamp(max=5)
        weight = {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}[kind]
        found["simple"].append(losses.tolist())
        found["min_snr"].append((weight * losses).tolist())
    return {name: np.transpose(value) for name, value in found.items()}


def test_loss_is_that_of_a_loop_with_diffusers(ldmrt: Any, bundle: Path, checkpoint: Path, pictures: Path) -> None:
    ran = ldmrt("evaluate", bundle, "--data", pictures, "--measure", "loss", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)["loss"]
    assert (found["images"], found["timesteps"]) == (3, TIMES)
    data = data_of(pictures)
    network, x0 = of_diffusers(checkpoint, [data.draw(0, i) for i in range(3)])
    config = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text())
    expected = slow_losses(network, x0, config)
    for name, value in expected.items():
        # float32 networks on two backends: some ten layers of sums, each of 1e-6 relative
        np.testing.assert_allclose(found[name], value.mean(axis=0), rtol=1e-5)
        assert found["mean"][name] == pytest.approx(np.mean(found[name]), rel=1e-12)  # of bins of one size
    shown = ldmrt("evaluate", bundle, "--data", pictures, "--measure", "loss").out
    assert f"{found['mean']['simple']:.4g}" in shown
    assert "L_simple of 3 images, timesteps 25 to 975" in shown
    assert "█" in shown


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_loss_of_other_predictions(checkpoint: Path, pictures: Path, kind: str) -> None:
    loaded, data = load(checkpoint), data_of(pictures)
    loaded = replace(loaded, scheduler={**loaded.scheduler, "prediction_type": kind})
    found = network_scores(torch_pipeline(loaded), data, 3, ["loss"]).loss
    assert found is not None
    expected = slow_losses(*of_diffusers(checkpoint, [data.draw(0, i) for i in range(3)]), dict(loaded.scheduler))
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-5)  # as above


def test_loss_of_a_rectified_flow(checkpoint: Path, pictures: Path) -> None:
    """x = (1 - s) x0 + s eps and the target eps - x0, with s shifted as Esser et al. 2024 do, equation 23."""
    data = data_of(pictures)
    found = network_scores(torch_pipeline(replace(load(checkpoint), scheduler=FLOW)), data, 3, ["loss"]).loss
    assert found is not None
    assert found.min_snr is None
    network, x0 = of_diffusers(checkpoint, [data.draw(0, i) for i in range(3)])
    eps = Draws(0, range(3), stream="loss by timestep ").normal("noise", x0.shape[1:])
    for place, time in enumerate(TIMES):
        even = (time + 1) / 1000
        s = 3 * even / (1 + 2 * even)
        predicted = network((1 - s) * x0 + s * eps, torch.tensor(1000 * s, dtype=torch.float32))
        assert float(found.times[place]) == pytest.approx(1000 * s, rel=1e-6)  # float32
        expected = (predicted - (eps - x0)).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(found.simple[:, place], expected, rtol=1e-5, atol=0)  # as above


def small(pipeline: Pipeline, **changes: object) -> Pipeline:
    """A pipeline whose noise schedule has few timesteps."""
    return replace(pipeline, scheduler={**pipeline.scheduler, "num_train_timesteps": 30, **changes})


def test_bound_is_that_of_the_latents(checkpoint: Path, pictures: Path) -> None:
    """In batches of two, against one batch in float64 with diffusers' networks."""
    pipeline, data = small(torch_pipeline(load(checkpoint)), variance_type="fixed_large"), data_of(pictures)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ldmrt.tools.commands.training.scores.network.BATCH", 2)
        found = network_scores(pipeline, data, 3, ["bound"], seed=5).bound
    assert found is not None
    assert found.latent
    network, x0 = of_diffusers(checkpoint, [data.draw(5, i) for i in range(3)])
    last, expected = bound_of(network, x0, pipeline.scheduler, seed=5, levels=False)
    # Differences of predictions in float32 and of latents are squared and divided by small variances.
    torch.testing.assert_close(found.terms, bits(expected), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.prior, bits(last), rtol=1e-5, atol=0.0)
    each = bits(last + expected.sum(dim=1)).numpy()
    assert found.of_each.mean().item() == pytest.approx(each.mean(), rel=1e-5)  # float32 networks
    assert found.standard_error == pytest.approx(each.std(ddof=1) / 3**0.5, rel=1e-3)  # a difference of them


def test_bound_with_a_learned_variance(pictures: Path, tmp_path: Path) -> None:
    """Of pixels of 256 levels, by diffusers' U-Net in float64."""
    from diffusers import UNet2DModel

    folder, data = save_pipeline("improved-ddpm", tmp_path / "model"), data_of(pictures)
    pipeline = small(torch_pipeline(load(folder)))
    found = network_scores(pipeline, data, 2, ["loss", "bound"])
    unet = UNet2DModel.from_pretrained(folder / "unet").double().eval()
    x0 = torch.from_numpy(np.stack([data.draw(0, i).image for i in range(2)])).permute(0, 3, 1, 2).double() / 127.5 - 1
    last, expected = bound_of(lambda x, t: unet(x, t).sample, x0, pipeline.scheduler)
    assert found.bound is not None
    assert not found.bound.latent
    torch.testing.assert_close(found.bound.terms, bits(expected), rtol=1e-4, atol=1e-6)  # a float32 network
    torch.testing.assert_close(found.bound.prior, bits(last), rtol=1e-6, atol=0.0)
    assert found.loss is not None  # of the first half of the network's output
    assert found.loss.simple.shape == (2, 20)
    with pytest.raises(LdmrtError, match="another number of channels than variance_type fixed_small asks for"):
        network_scores(small(pipeline, variance_type=None), data, 2, ["bound"])


class ExactDenoiser:
    """A network that predicts the noise of images of mean 0 whose levels are all equally frequent, as well as a linear
    function of the noised image can; it stands in for the engine of a U-Net.
    """

    variance = (256**2 - 1) / 12 / 127.5**2  # of levels 0 to 255, scaled to [-1, 1]

    def __init__(self, engine: Any, abar: Tensor) -> None:
        self.inputs, self.outputs, self.abar = engine.inputs, engine.outputs, abar.numpy()

    def __call__(self, sample: np.ndarray, timestep: np.ndarray, **_: Any) -> dict[str, np.ndarray]:
        abar = self.abar[timestep.astype(int)][:, None, None, None]
        believed = np.sqrt(abar) * self.variance / (abar * self.variance + 1 - abar) * sample
        return {"out_sample": ((sample - np.sqrt(abar) * believed) / np.sqrt(1 - abar)).astype(np.float32)}


def test_bound_of_the_exact_denoiser(tmp_path: Path) -> None:
    """Images of all 256 levels: each term's expectation is known, as it depends on second moments alone."""
    lines, count = [], 8
    for i in range(count):
        channels = [np.random.default_rng((i, c)).permutation(256).reshape(16, 16) for c in range(3)]
        Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": "noise"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    schedule = {"beta_start": 1e-3, "beta_end": 0.3, "beta_schedule": "linear", "variance_type": "fixed_large"}
    pipeline = small(torch_pipeline(load(save_pipeline("ddpm", tmp_path / "model"))), **schedule)
    chain = Chain.of(pipeline.scheduler)
    exact = LazyEngines.of({"unet": ExactDenoiser(pipeline.engines["unet"], chain.abar)})
    found = network_scores(replace(pipeline, engines=exact), data_of(tmp_path), count, ["bound", "loss"])
    assert found.bound is not None
    variance, zero = ExactDenoiser.variance, torch.zeros(30, 1, 1, 1, dtype=torch.float64)
    left = variance * (1 - chain.abar) / (chain.abar * variance + 1 - chain.abar)  # of x0 given x_t
    expected = bits(terms(chain, left.sqrt()[:, None, None, None], zero, torch.arange(30), zero, "fixed_large"))[1:]
    inner = found.bound.terms[:, 1:].sum(dim=1)
    assert abs(inner.mean() - expected.sum()) < 5 * inner.std() / count**0.5
    assert inner.std() / count**0.5 < 0.05 * expected.sum()  # the interval is narrow enough to tell
    at_last = bits(prior(chain, torch.full((1, 1, 1, 1), variance**0.5, dtype=torch.float64)))
    torch.testing.assert_close(found.bound.prior, at_last.expand(count), rtol=1e-6, atol=0.0)  # float32 images
    assert found.loss is not None  # of the noise, given x: abar variance / (abar variance + 1 - abar)
    abar = chain.abar[found.loss.times.long()]
    noise = (abar * variance / (abar * variance + 1 - abar)).float()
    torch.testing.assert_close(found.loss.simple.mean(dim=0), noise, rtol=0.15, atol=0.0)  # 6144 numbers: 8 errors


@pytest.mark.slow(minutes=0.11)
def test_bound_command(ldmrt: Any, bundle: Path, pictures: Path) -> None:
    words = ("evaluate", bundle, "--data", pictures, "--prompts", 2, "--measure", "bound")
    ran = ldmrt(*words, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)["bound"]
    assert (found["images"], found["of"], len(found["terms"])) == (2, "latents", 1000)
    assert found["L_T"] + found["L_t"] + found["L_0"] == pytest.approx(found["bits_per_dimension"], rel=1e-12)
    assert found["L_0"] == found["terms"][0]
    assert found["standard_error"] > 0
    shown = ldmrt(*words).out
    assert f"{found['bits_per_dimension']:.4g}" in shown
    assert "L_1 to L_999" in shown
    assert "variational bound of the latents, whose L_0 is a density's" in shown
