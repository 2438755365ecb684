"""Low-rank pairs in training against PEFT's on diffusers' U-Net, and their files read by diffusers and by ldmrt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from ldmrt.model import load
from ldmrt.model.lora.merge import merge, read_lora
from ldmrt.model.training.lora.pairs import GROUPS, LoraConfig, Pairs
from ldmrt.model.training.lora.writing import write
from ldmrt.runtime.errors import LdmrtError

from ....support.loras import ours, pipeline

ALL = tuple(GROUPS)
ADAPTER = LoraConfig(rank=4, alpha=6.0, layers=ALL)


def inputs(unet: Any) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    config = unet.config
    x = torch.randn(2, config.in_channels, 16, 16, generator=generator)
    return x, torch.tensor([7, 400]), torch.randn(2, 5, config.cross_attention_dim, generator=generator)


def randomise(pairs: Pairs) -> None:
    torch.manual_seed(4)
    for weight in pairs.parameters():
        nn.init.normal_(weight, std=0.1)


def predict(unet: Any, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    found = unet(x, t, context)
    return found if isinstance(found, Tensor) else found.sample


@pytest.fixture
def both(checkpoint: Path) -> tuple[nn.Module, Pairs, Any, dict[str, nn.Parameter]]:
    """Our U-Net with pairs, and diffusers' with PEFT's of the same numbers, by the names of their modules."""
    unet, theirs = ours(checkpoint)["unet"], pipeline(checkpoint).unet
    pairs = Pairs({"unet": unet}, ADAPTER)
    randomise(pairs)
    targets = [module for _, module in pairs.places.values()]
    theirs.add_adapter(peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets))
    named = {name.replace(".default", ""): p for name, p in theirs.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for (_, module), (down, up) in pairs.factors().items():
            named[f"{module}.lora_A.weight"].copy_(down)
            named[f"{module}.lora_B.weight"].copy_(up)
    return unet, pairs, theirs, named


def by_theirs(pairs: Pairs) -> dict[str, nn.Parameter]:
    found = {}
    for name, (_, module) in pairs.places.items():
        pair: Any = pairs.pairs[name]
        found |= {f"{module}.lora_A.weight": pair.down.weight, f"{module}.lora_B.weight": pair.up.weight}
    return found


def test_new_pairs_leave_the_output_bit_equal(checkpoint: Path) -> None:
    unet: Any = ours(checkpoint)["unet"]
    given = inputs(pipeline(checkpoint).unet)
    before, names = predict(unet, *given), list(unet.state_dict())
    pairs = Pairs({"unet": unet}, ADAPTER)
    assert torch.equal(predict(unet, *given), before)
    assert list(unet.state_dict()) == names
    assert not any(weight.requires_grad for weight in unet.parameters())
    randomise(pairs)
    assert not torch.equal(predict(unet, *given), before)


def test_gradients_are_pefts(both: Any) -> None:
    unet, pairs, theirs, named = both
    given = inputs(theirs)
    for network in (unet, theirs):
        predict(network, *given).square().mean().backward()
    mine = by_theirs(pairs)
    assert mine.keys() == named.keys()
    for key, weight in named.items():
        assert weight.grad.abs().max() > 0, key
        # float32: sums over pixels in the same order but for fused attention's
        assert (mine[key].grad - weight.grad).abs().max() <= 1e-6 * max(1.0, float(weight.grad.abs().max())), key


def test_five_steps_of_adamw_are_pefts(both: Any) -> None:
    unet, pairs, theirs, named = both
    x, t, context = inputs(theirs)
    mine = by_theirs(pairs)
    before = {key: weight.detach().clone() for key, weight in mine.items()}
    for network, weights in ((unet, mine), (theirs, named)):
        # eps well above the gradients' rounding: AdamW divides by their size, and would make signs of noise
        optimizer = torch.optim.AdamW([weights[key] for key in sorted(weights)], lr=1e-3, eps=1e-4)
        for _ in range(5):
            optimizer.zero_grad()
            (predict(network, x, t, context) - x).square().mean().backward()
            optimizer.step()
    for key, weight in named.items():
        assert not torch.equal(weight, before[key])
        assert (mine[key] - weight).abs().max() <= 1e-5, key  # a step moves by 1e-3


def test_gradients_beside_a_base_in_bf16_are_pefts(both: Any) -> None:
    """Both compute in bf16, with pairs in float32: their gradients have the same bits, and others than float32's."""
    unet, pairs, theirs, named = both
    given, mine = inputs(theirs), by_theirs(pairs)
    predict(unet, *given).square().mean().backward()
    exact = {key: weight.grad.clone() for key, weight in mine.items()}  # type: ignore[union-attr]
    pairs.zero_grad()
    for network, weights in ((unet, mine), (theirs, named)):
        own = {weight.data_ptr() for weight in weights.values()}
        for weight in network.parameters():
            if weight.data_ptr() not in own:
                weight.data = weight.data.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            predict(network, *given).float().square().mean().backward()
    for key, weight in named.items():
        assert mine[key].grad.dtype == torch.float32  # type: ignore[union-attr]
        assert torch.equal(mine[key].grad, weight.grad), key  # type: ignore[arg-type]
    assert any(not torch.equal(mine[key].grad, gradient) for key, gradient in exact.items())  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_file_loads_in_diffusers_and_here(form: str, checkpoint: Path, tmp_path: Path) -> None:
    trained = ours(checkpoint)
    pairs = Pairs(trained, ADAPTER)
    randomise(pairs)
    write(pairs, tmp_path / "lora.safetensors", form)
    theirs, merged = pipeline(checkpoint), ours(checkpoint)
    given, ids = inputs(theirs.unet), torch.tensor([[1, 5, 7, 2]])
    plain = predict(theirs.unet, *given).detach()
    theirs.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    counts = merge(merged, [(read_lora(tmp_path / "lora.safetensors"), 1.0)])["loras"][0]["layers"]
    assert sum(counts.values()) == len(pairs.places)
    with torch.no_grad():
        expected, text = predict(trained["unet"], *given), hidden(trained["text_encoder"], ids)
        assert (expected - plain).abs().max() > 1e-2
        for unet, encoder in ((theirs.unet, theirs.text_encoder), (merged["unet"], merged["text_encoder"])):
            # float32: a merged weight rounds once where a pair beside it rounds twice
            assert (predict(unet, *given) - expected).abs().max() <= 2e-5
            assert (hidden(encoder, ids) - text).abs().max() <= 2e-5


def hidden(encoder: Any, ids: Tensor) -> Tensor:
    found = encoder(ids)
    return found if isinstance(found, Tensor) else found[0]


def test_invalid_loras_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    networks = ours(checkpoint)
    with pytest.raises(LdmrtError, match="rank of the LoRA is too large for unet"):
        Pairs(networks, LoraConfig(rank=10_000, alpha=1.0))
    assert all(weight.requires_grad for weight in networks["unet"].parameters())  # nothing was changed
    with pytest.raises(LdmrtError, match=r"no layer of text_encoder .*convolutions"):
        Pairs(networks, LoraConfig(rank=2, alpha=1.0, layers=("convolutions",)))
    with pytest.raises(LdmrtError, match=r"invalid rank of a LoRA"):
        LoraConfig(rank=0, alpha=1.0)
    with pytest.raises(LdmrtError, match="invalid alpha"):
        LoraConfig(rank=1, alpha=float("nan"))
    with pytest.raises(LdmrtError, match="unknown group of layers"):
        LoraConfig(rank=1, alpha=1.0, layers=("attentions",))
    with pytest.raises(LdmrtError, match="unknown format"):
        write(Pairs(networks, LoraConfig(rank=1, alpha=1.0)), tmp_path / "lora.safetensors", "peft")


@pytest.mark.slow(minutes=0.08)
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_files_of_two_text_encoders_load_in_diffusers(
    form: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    import diffusers

    trained = load(folders("sdxl")).networks
    networks = {name: trained[name] for name in ("unet", "text_encoder", "text_encoder_2")}
    pairs = Pairs(networks, LoraConfig(rank=4, alpha=6.0, layers=("attention", "feed-forward", "projections")))
    randomise(pairs)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    write(pairs, path, form)
    theirs: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(folders("sdxl"))
    theirs.load_lora_weights(tmp_path)
    merged = load(folders("sdxl")).networks
    counts = merge(merged, [(read_lora(path), 1.0)])["loras"][0]["layers"]
    assert sum(counts.values()) == len(pairs.places)
    ids = torch.tensor([[1, 5, 7, 2]])
    for name in ("text_encoder", "text_encoder_2"):
        with torch.no_grad():
            expected = networks[name](ids, output_hidden_states=True).hidden_states[-2]
            for encoder in (getattr(theirs, name), merged[name]):
                found = encoder(ids, output_hidden_states=True).hidden_states[-2]
                # float32: a merged weight rounds once where a pair beside it rounds twice
                assert (found - expected).abs().max() <= 2e-5
            with pairs.detached(networks):
                plain = networks[name](ids, output_hidden_states=True).hidden_states[-2]
            assert (plain - expected).abs().max() > 1e-2
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    config: Any = theirs.unet.config
    context = torch.randn(1, 5, config.cross_attention_dim, generator=torch.Generator().manual_seed(4))
    more = {
        "text_embeds": torch.randn(1, networks["text_encoder_2"].config.projection_dim),
        "time_ids": torch.ones(1, 6),
    }  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        expected = networks["unet"](x, torch.tensor([7]), context, **more)
        found = theirs.unet(x, torch.tensor([7]), context, added_cond_kwargs=more).sample
        assert (found - expected).abs().max() <= 2e-5 * max(1.0, float(expected.abs().max()))
        assert (merged["unet"](x, torch.tensor([7]), context, **more) - expected).abs().max() <= 2e-5 * max(
            1.0, float(expected.abs().max())
        )
