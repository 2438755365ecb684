"""Files of Stable Diffusion 3 and FLUX.1, whole, in parts or beside a folder, against the folder that they are from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldmrt.model import load
from ldmrt.model.checkpoint.checkpoint import Checkpoint, config_of
from ldmrt.runtime import LdmrtError

from ....support.families.compared import Saved
from ....support.families.original_transformers import text_files, vae_file, with_prefix
from ....tools.conftest import command
from .conftest import NAMES, UNET, State, levels_of, states, transformer_file, whole_file

T5_TOO = {"text_encoder_3", "tokenizer_3"}
PREFIXES = ("", UNET)


def same(ours: State, theirs: State) -> bool:
    """Whether two networks have the same weights, to the bit."""
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[key]) for key, value in ours.items())


def assert_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Two checkpoints have the same networks, index and, of T5, the same vocabulary."""
    assert ours.networks.keys() == theirs.networks.keys()
    assert all(same(n.state_dict(), theirs.networks[part].state_dict()) for part, n in ours.networks.items())
    left, right = config_of(ours.denoiser), config_of(theirs.denoiser)
    assert {**left, "sample_size": 0} == {**right, "sample_size": 0}  # which no shape tells
    assert ours.index["_class_name"] == theirs.index["_class_name"]
    assert ours.tokenizers.keys() == theirs.tokenizers.keys()
    pieces = {part: files["spiece.model"] for part, files in theirs.tokenizers.items() if "spiece.model" in files}
    assert all(ours.tokenizers[part]["spiece.model"] == content for part, content in pieces.items())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", NAMES)
def test_whole_file(name: str, folders: Saved, tmp_path: Path) -> None:
    """Autoencoder and text encoders are in the file; T5 is left out where it has none."""
    path, folder = tmp_path / "model.safetensors", folders[name]
    save_file(whole_file(name, folder), path)
    loaded = load(path, tokenizer=folder, without_t5=name == "sd3-without-t5")
    assert_same(loaded, load(folder))
    assert loaded.scheduler["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    assert loaded.scheduler["shift"] == (1.0 if name == "schnell" else 3.0)
    assert loaded.scheduler.get("use_dynamic_shifting", False) is (name in ("dev", "fill", "canny"))


@pytest.mark.usefixtures("small")
def test_t5_of_a_whole_file_may_be_left_out(folders: Saved, tmp_path: Path) -> None:
    path, folder = tmp_path / "model.safetensors", folders["sd35-medium"]
    save_file(whole_file("sd35-medium", folder), path)
    loaded = load(path, tokenizer=folder, without_t5=True)
    assert_same(loaded, load(folder, without_t5=True))
    assert {loaded.index[part] == [None, None] for part in T5_TOO} == {True}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("whole", [False, True])
def test_four_files(whole: bool, folders: Saved, tmp_path: Path) -> None:
    """FLUX.1 as people have it: transformer, autoencoder, CLIP and T5, each in its own file, or in a whole one."""
    folder = folders["dev"]
    own = states(folder)
    texts = text_files(own, {"text_encoder": "clip_l"})
    files = {
        "transformer": transformer_file("dev", own["transformer"]), "vae": vae_file(own["vae"], levels_of(folder)),
        "text_encoder": {key.partition(".transformer.")[2] or "logit_scale": value for key, value in texts.items()},
        "text_encoder_2": own["text_encoder_2"],
    }  # fmt: skip
    for part, file in files.items():
        save_file({key: value.contiguous() for key, value in file.items()}, tmp_path / f"{part}.safetensors")
    parts = {part: tmp_path / f"{part}.safetensors" for part in files if part != "transformer"}
    if whole:
        save_file(whole_file("dev", folder), tmp_path / "whole.safetensors")
        parts = dict.fromkeys(parts, tmp_path / "whole.safetensors")
    assert_same(load(tmp_path / "transformer.safetensors", tokenizer=folder, parts=parts), load(folder))


@pytest.mark.parametrize("form", [*PREFIXES, "diffusers", "whole", "folder"])
@pytest.mark.parametrize("name", ["sd3", "sd35-medium", "schnell"])
def test_transformer_beside_a_folder(name: str, form: str, folders: Saved, tmp_path: Path) -> None:
    """Another transformer of the same size takes the place of the folder's, whose config tells the rest."""
    folder, path = folders[name], tmp_path / "transformer.safetensors"
    changed = {key: value + 1 for key, value in states(folder)["transformer"].items()}
    if form == "whole":
        save_file(whole_file(name, folder, lambda state: state.update(changed)), path)
    elif form == "folder":
        path = tmp_path / "transformer"
        path.mkdir()
        save_file(changed, path / "diffusion_pytorch_model.safetensors")
        (path / "config.json").write_bytes((folder / "transformer" / "config.json").read_bytes())
    else:
        file = changed if form == "diffusers" else with_prefix(form, transformer_file(name, changed))
        save_file(file, path)
    loaded = load(folder, parts={"transformer": path})
    assert same(loaded.denoiser.state_dict(), changed)
    assert config_of(loaded.denoiser) == config_of(load(folder).denoiser)


@pytest.mark.parametrize("name", ["schnell", "fill", "canny"])
def test_another_kind_of_flux_beside_a_folder(name: str, folders: Saved, tmp_path: Path) -> None:
    """Its channels and its guidance follow from the file, and so does the pipeline's class."""
    other = states(folders[name])["transformer"]
    save_file(transformer_file(name, other), tmp_path / "transformer.safetensors")
    loaded, theirs = load(folders["dev"], parts={"transformer": tmp_path / "transformer.safetensors"}), folders[name]
    assert same(loaded.denoiser.state_dict(), other)
    assert config_of(loaded.denoiser) == config_of(load(theirs).denoiser)
    assert loaded.index["_class_name"] == load(theirs).index["_class_name"]
    assert loaded.stage == load(theirs).stage


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["sd35-medium", "dev"])
def test_float8(name: str, scaled: bool, stored: torch.dtype, folders: Saved, tmp_path: Path) -> None:
    """Matrices in float8, plain or with ComfyUI's scales, of which q, k and v share one; all else is as it was."""
    state = states(folders[name])["transformer"]
    file: State = {}
    for key, value in transformer_file(name, state).items():
        if value.ndim != 2:
            file[UNET + key] = value
            continue
        scale = value.abs().max() / 2 if scaled else torch.ones(())
        file[UNET + key] = (value / scale).to(stored)
        if scaled:
            file[UNET + key.replace(".weight", ".scale_weight")] = scale
    if scaled:
        file[f"{UNET}scaled_fp8"] = torch.empty(0, dtype=stored)
    path = tmp_path / "transformer.safetensors"
    save_file(file, path)
    loaded = load(folders[name], parts={"transformer": path}).denoiser.state_dict()

    def expected(key: str, value: Tensor) -> Tensor:
        """The stored matrix as a float32 twin of the file has it."""
        if value.ndim != 2:
            return value
        found = file[UNET + key].float()
        return found * file[UNET + key.replace(".weight", ".scale_weight")] if scaled else found

    twin = {UNET + key: expected(key, value) for key, value in transformer_file(name, state).items()}
    save_file(twin, tmp_path / "twin.safetensors")
    plain = load(folders[name], parts={"transformer": tmp_path / "twin.safetensors"}).denoiser.state_dict()
    assert same(loaded, plain)
    assert not same(loaded, state)  # float8 has rounded it


BLOCK = f"{UNET}double_blocks.1.txt_attn.qkv.weight"


def ungrouped(state: State) -> None:
    """Take a row from a matrix that is three."""
    state[BLOCK] = state[BLOCK][:-1].contiguous()


def moved(state: State) -> None:
    """Give the matrix of q, k and v another width."""
    state[BLOCK] = state[BLOCK][:, :-1].contiguous()


DAMAGE: dict[str, tuple[Any, str]] = {
    "missing": (lambda s: s.pop(BLOCK), f"transformer: 1 tensors are missing from .*; expected {BLOCK}"),
    "input missing": (lambda s: s.pop(f"{UNET}txt_in.weight"), "transformer: 1 tensors are missing .*txt_in.weight"),
    "extra": (lambda s: s.update({f"{UNET}x": torch.ones(1)}), f"transformer: .* 1 unexpected tensors; found {UNET}x"),
    "extra part": (lambda s: s.update(x=torch.ones(1)), "checkpoint: .* 1 unexpected tensors; found x"),
    "no third": (ungrouped, f"transformer: wrong shape of {BLOCK}"),
    "width": (moved, f"transformer: wrong shape of {BLOCK}"),
    "axes": (
        lambda s: s.update({f"{UNET}img_in.weight": torch.ones(3)}),
        "transformer: wrong shape of .*img_in.weight in .*; expected 2 axes",
    ),
    "no autoencoder": (
        lambda s: [s.pop(key) for key in list(s) if key.startswith("vae.")],
        "(?s)checkpoint: 1 parts are missing from .*; expected vae.*--vae FILE; or",
    ),
    "nothing else": (
        lambda s: [s.pop(key) for key in list(s) if not key.startswith(UNET)],
        "(?s)3 parts are missing .*expected vae, text_encoder, text_encoder_2.*text_encoder_2=FILE.*--transformer ",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("small")
def test_a_file_without_t5_asks_for_it(folders: Saved, tmp_path: Path) -> None:
    """Without T5 the images are others, so it is not left out in silence."""
    path, folder = tmp_path / "model.safetensors", folders["sd3-without-t5"]
    save_file(whole_file("sd3-without-t5", folder), path)
    with pytest.raises(LdmrtError, match=r"(?s)1 parts are missing .*text_encoder_3=FILE or --without-t5"):
        load(path, tokenizer=folders["sd3"])
    for other, message in ((None, "holds no tokenizer; .*"), (folder, "tokenizer_3: no tokenizer of T5 in ")):
        with pytest.raises(LdmrtError, match=f"(?s){message}.*of a Stable Diffusion 3 or FLUX.1"):
            load(path, tokenizer=other, parts={"text_encoder_3": folders["sd3"] / "text_encoder_3"})


@pytest.mark.parametrize(
    ("own", "file", "message"),
    [
        ("dev", "sd3", "holds no transformer that fits; expected FluxTransformer2DModel; found SD3Transformer2DModel"),
        ("dev", "vae", "holds no transformer that fits; expected FluxTransformer2DModel; found ... tensors, such as "),
        ("tiny", "dev", "transformer: this checkpoint has a U-Net"),
    ],
)
def test_transformers_that_do_not_fit(own: str, file: str, message: str, folders: Saved, checkpoint: Path) -> None:
    folder = checkpoint if own == "tiny" else folders[own]
    part = folders["dev"] / "vae" if file == "vae" else folders[file] / "transformer"
    with pytest.raises(LdmrtError, match=message):
        load(folder, parts={"transformer": part / "diffusion_pytorch_model.safetensors"})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged(kind: str, folders: Saved, tmp_path: Path) -> None:
    damage, message = DAMAGE[kind]
    file, path = whole_file("dev", folders["dev"]), tmp_path / "model.safetensors"
    damage(file)
    save_file(file, path)
    with pytest.raises(LdmrtError, match=message):
        load(path, tokenizer=folders["dev"])


@pytest.mark.slow(minutes=0.05)
def test_export_takes_a_transformer(folders: Saved, tmp_path: Path) -> None:
    """`--transformer`: the manifest names the file, and the bundle's config is that of its channels."""
    save_file(states(folders["fill"])["transformer"], tmp_path / "fill.safetensors")
    words = ("--transformer", tmp_path / "fill.safetensors", "--components", "text_encoder", "--no-verify")
    assert command("export", folders["dev"], tmp_path / "bundle", *words) == 0
    assert json.loads((tmp_path / "bundle" / "ldmrt.json").read_text())["parts"] == {"transformer": "fill.safetensors"}
    assert json.loads((tmp_path / "bundle" / "model_index.json").read_text())["_class_name"] == "FluxFillPipeline"
