"""The codebook in training: codes of diffusers' VQModel, gradients that pass unchanged, averages, restarts."""

import pytest
import torch
from diffusers.models.autoencoders.vae import VectorQuantizer

from ldmrt.model.networks.vq_autoencoder import Quantizer
from ldmrt.model.training.first_stage.quantise import DECAY, Codebook, perplexity, quantise, strip


def pair(codes: int = 7, width: int = 3) -> tuple[Quantizer, VectorQuantizer]:
    torch.manual_seed(0)
    ours, theirs = Quantizer(codes, width), VectorQuantizer(codes, width, beta=0.25, remap=None, legacy=False)
    theirs.embedding.load_state_dict(ours.embedding.state_dict())
    return ours, theirs


def test_codes_losses_and_gradients_equal_those_of_diffusers() -> None:
    ours, theirs = pair()
    latents = torch.randn(2, 3, 4, 5, requires_grad=True)
    found, direction = quantise(ours, latents), torch.randn(2, 3, 4, 5)
    (found.loss.mean() + (found.latents * direction).sum()).backward()
    gradients = latents.grad.clone(), ours.embedding.weight.grad
    latents.grad = None
    quantised, loss, (_, _, indices) = theirs(latents)
    (loss + (quantised * direction).sum()).backward()
    assert torch.equal(found.codes.flatten(), indices.flatten())
    torch.testing.assert_close(found.latents, quantised)
    torch.testing.assert_close(found.loss.mean(), loss)
    torch.testing.assert_close(gradients[0], latents.grad)
    torch.testing.assert_close(gradients[1], theirs.embedding.weight.grad)


def test_the_gradient_passes_unchanged() -> None:
    ours, _ = pair()
    latents, direction = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    (quantise(ours, latents).latents * direction).sum().backward()
    assert torch.equal(latents.grad, direction)
    assert ours.embedding.weight.grad is None


def test_perplexity_counts_codes_in_use() -> None:
    assert perplexity(torch.tensor([3, 3, 0, 3])) == pytest.approx(3.0, rel=1e-12)
    assert perplexity(torch.tensor([5, 0])) == 1.0


def test_a_codebook_by_moving_average_equals_a_slow_twin() -> None:
    ours, _ = pair()
    book = Codebook(ours, 0, averaged=True, restart=False)
    usage, sums = torch.zeros(7, dtype=torch.float64), torch.zeros(7, 3, dtype=torch.float64)
    for step in range(4):
        for part in torch.randn(2, 2, 3, 2, 2):  # two parts of a batch are one update
            codes = ours.codes(part)
            book.note(part, codes, step)
            each = zip(part.flatten(2).transpose(1, 2).flatten(0, 1).double(), codes.flatten(), strict=True)
            for latent, code in each:
                usage[code] += (1 - DECAY) / DECAY * 1.0
                sums[code] += (1 - DECAY) / DECAY * latent
        usage, sums = usage * DECAY, sums * DECAY
        book.update(step)
    used = usage > 0
    # float32 against float64, four steps
    torch.testing.assert_close(
        ours.embedding.weight[used].double(), (sums / usage[:, None])[used], rtol=1e-5, atol=1e-6
    )


def test_unused_codes_restart_from_the_batch() -> None:
    ours, _ = pair()
    with torch.no_grad():
        ours.embedding.weight[3:] = 100.0
    before = ours.embedding.weight.detach().clone()
    latents = torch.randn(1, 3, 8, 8)
    book = Codebook(ours, 0)
    codes = ours.codes(latents)
    book.note(latents, codes, 0)
    book.update(0)
    for code, row in enumerate(ours.embedding.weight.detach()):
        if code in codes:
            assert torch.equal(row, before[code])
        else:
            assert (row == latents.flatten(2)[0].T).all(dim=1).any()
    book.note(latents, ours.codes(latents), 1)
    again = ours.embedding.weight.detach().clone()
    book.update(1)
    assert torch.equal(again, ours.embedding.weight)  # a code that was just restarted has time to find latents


def test_a_codebook_is_stripped_of_what_no_checkpoint_has() -> None:
    ours, _ = pair()
    Codebook(ours, 0)
    assert {"usage", "sums"} < ours.state_dict().keys()
    assert strip(ours).state_dict().keys() == {"embedding.weight"}
