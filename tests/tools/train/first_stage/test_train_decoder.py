"""`ldmrt train autoencoder --decoder-of`: the decoder learns, and latents stay to the bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.latents import to_tensor

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"
SHIPPED = Path(__file__).parents[4] / "model" / "pretrained" / "emoji64"
FROZEN = ("encoder.", "quant_conv.", "quantize.")
KINDS = {"kl": [], "vq": ["--kind", "vq", "--codes", 12]}
ADVERSARIAL = ["--reconstruction", "l1", "--log-variance", "learned", "--adversarial", 0.5, "--discriminator-layers", 1,
               "--perceptual", "discriminator", "--discriminator-start", 1]  # fmt: skip


def words(pictures: Path, *more: object) -> list[object]:
    own = ["--data", pictures, "--batch", 2, "--size", 16, "--warmup", 1, "--schedule", "constant"]
    return ["train", "autoencoder", *own, *more]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "vae" / WEIGHTS)


@pytest.fixture
def first(ldmrt: Any, pictures: Path, tmp_path: Path, small_networks: None) -> Any:
    """Train an autoencoder of this kind for two steps."""

    def run(kind: str) -> Path:
        ran = ldmrt(*words(pictures, "--steps", 2, "--out", tmp_path / kind, *KINDS[kind]))
        assert ran.code == 0, ran.err
        return tmp_path / kind

    return run


@pytest.mark.slow(minutes=0.1)
@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_alone_learns_and_a_stopped_run_ends_in_the_same_bytes(
    kind: str, first: Any, ldmrt: Any, pictures: Path, tmp_path: Path
) -> None:
    base, whole, halves = first(kind), tmp_path / "whole", tmp_path / "halves"
    more = ["--decoder-of", base, "--kind", kind, "--accumulate", 2, "--validation", 0.4, *ADVERSARIAL]
    for out, steps, resumed in ((whole, 4, []), (halves, 2, []), (halves, 4, ["--resume"])):
        ran = ldmrt(*words(pictures, "--steps", steps, "--out", out, *more, *resumed))
        assert ran.code == 0, ran.err
    assert "held-out images: PSNR" in ran.err
    before, after, again = weights(base), weights(whole), weights(halves)
    assert before.keys() == after.keys() == again.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith(FROZEN), name
        assert torch.equal(again[name], after[name]), name
    config = json.loads((base / "vae" / CONFIG).read_text())
    assert json.loads((whole / "vae" / CONFIG).read_text()) == config
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    parts = next(line["parts"] for line in lines if "parts" in line)
    assert parts.keys() == {"reconstruction", "perceptual", "adversarial", "discriminator"}
    assert f"trained (the decoder alone) from `{kind}`" in (whole / "README.md").read_text()
    ran = ldmrt("train", whole / "recipe.toml", "--out", tmp_path / "again")
    assert ran.code == 0, ran.err
    assert all(torch.equal(value, after[name]) for name, value in weights(tmp_path / "again").items())


def test_the_decoder_of_a_whole_checkpoint(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    """Its latents are the same in diffusers, and its scaling factor is not measured."""
    ran = ldmrt(*words(pictures, "--steps", 2, "--decoder-of", SHIPPED, "--out", tmp_path))
    assert ran.code == 0, ran.err
    before, after = (json.loads((folder / "vae" / CONFIG).read_text()) for folder in (SHIPPED, tmp_path))
    assert before == {name: after[name] for name in before}
    one, other = (AutoencoderKL.from_pretrained(folder / "vae") for folder in (tmp_path, SHIPPED))
    x = to_tensor([ImageFolder.open(pictures, size=16).draw(0, 0).image], "cpu")
    with torch.no_grad():
        latents = other.encode(x).latent_dist.mode()
        assert torch.equal(one.encode(x).latent_dist.mode(), latents)
        assert not torch.equal(one.decode(latents).sample, other.decode(latents).sample)


def test_a_run_is_resumed_from_the_weights_that_it_started_from(
    first: Any, ldmrt: Any, pictures: Path, tmp_path: Path
) -> None:
    base, moved, changed, scaled = first("kl"), tmp_path / "moved", tmp_path / "changed", tmp_path / "scaled"
    assert ldmrt(*words(pictures, "--steps", 1, "--decoder-of", base, "--out", tmp_path / "out")).code == 0
    for folder in (moved, changed, scaled):
        shutil.copytree(base / "vae", folder / "vae")
    tensors = weights(base)
    tensors["encoder.conv_in.bias"][0] += 1
    save_file(tensors, changed / "vae" / WEIGHTS)
    config = json.loads((base / "vae" / CONFIG).read_text())
    (scaled / "vae" / CONFIG).write_text(json.dumps(config | {"scaling_factor": 0.5}))
    for folder, error in ((changed, "another decoder-of"), (scaled, "another scaling-factor"), (moved, None)):
        ran = ldmrt(*words(pictures, "--steps", 2, "--decoder-of", folder, "--out", tmp_path / "out", "--resume"))
        assert (ran.code == 0) if error is None else (error in ran.error), ran.err


def test_a_plan_counts_the_frozen_weights(first: Any, ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    ran = ldmrt(*words(pictures, "--steps", 1, "--decoder-of", first("kl"), "--out", tmp_path / "out", "--plan"))
    assert ran.code == 0, ran.err
    assert "frozen" in ran.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--decoder-of", "nowhere"], "nowhere"),
        (["--decoder-of", "{pictures}"], "config.json"),
        (["--decoder-of", "{base}", "--kind", "vq"], "is of another --kind; expected kl; found vq"),
        (["--decoder-of", "{base}", "--kl-weight", "0.1"], "--kl-weight is about latents, which stay"),
        (["--decoder-of", "{base}", "--codebook", "average"], "--codebook is about latents"),
        (["--decoder-of", "{base}", "--size", "20"], "unsupported --size; expected a multiple of 8"),
        (["--decoder-of", "{vae}", "--out", "{vae}"], "--out is the folder that --decoder-of names"),
    ],
)
def test_invalid_decoders_are_refused(
    more: list[str], message: str, first: Any, ldmrt: Any, pictures: Path, tmp_path: Path
) -> None:
    base = first("kl")
    shutil.copytree(base / "vae", tmp_path / "whole" / "vae")
    places = {"pictures": pictures, "base": base, "vae": tmp_path / "whole"}
    before = (tmp_path / "whole" / "vae" / WEIGHTS).read_bytes()
    ran = ldmrt(*words(pictures, "--steps", 1, "--out", tmp_path / "out", *(word.format(**places) for word in more)))
    assert ran.code == 2
    assert message in ran.error
    assert not (tmp_path / "out" / "vae").exists()
    assert (tmp_path / "whole" / "vae" / WEIGHTS).read_bytes() == before


def test_another_size_than_the_autoencoders_is_chosen_on_purpose(
    first: Any, ldmrt: Any, pictures: Path, tmp_path: Path
) -> None:
    ran = ldmrt("train", "autoencoder", "--data", pictures, "--decoder-of", first("kl"), "--out", tmp_path / "out")
    assert ran.code == 2
    assert "--size is not that of the checkpoint; expected 16 pixels; found 64" in ran.error
