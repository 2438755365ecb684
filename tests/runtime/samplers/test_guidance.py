"""Guidance as a matrix against the formula of the paper."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime.samplers.guidance import Guidance, classifier_free, compose, guide


def rows(n: int) -> NDArray[Any]:
    return np.random.default_rng(n).standard_normal((n, 4, 3, 5), dtype=np.float32)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 7.5, -1.0])
def test_matrix_is_the_formula(batch: int, scale: float) -> None:
    guidance, out = classifier_free(batch, scale), rows(2 * batch)
    negative, positive = out[:batch], out[batch:]
    found = guidance.combine(out)
    assert guidance.idx.tolist() == [*range(batch), *range(batch)]
    assert found.dtype == np.float32
    # (1 - g) u + g p and u + g (p - u) round differently: a few units in the last place of |g| times the values
    expected = negative + np.float32(scale) * (positive - negative)
    np.testing.assert_allclose(found, expected, atol=4 * 2.0**-23 * (1 + abs(scale)) * np.abs(out).max())


def test_no_guidance_runs_half_the_rows() -> None:
    guidance, out = classifier_free(3, 1.0), rows(3)
    assert guidance.idx.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(guidance.combine(out), out)


def test_each_latent_has_its_own_weights() -> None:
    """Two requests in one batch, one of guidance 2, one of two prompts that weigh a quarter and three."""
    weights = np.array([[-1.0, 2.0, 0, 0], [0, 0, 0.25, 0.75]], np.float32)
    guidance, out = Guidance(np.array([0, 0, 1, 1]), weights), rows(4)
    found = guidance.combine(out)
    np.testing.assert_allclose(found[0], 2 * out[1] - out[0], rtol=1e-6, atol=1e-6)  # sums of two float32
    np.testing.assert_allclose(found[1], 0.25 * out[2] + 0.75 * out[3], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_combined_in_place(rescale: float) -> None:
    guidance, out = classifier_free(2, 7.5, rescale), rows(4)
    into = np.full_like(out[:2], np.nan)
    assert guidance.combine(out, into) is into
    np.testing.assert_array_equal(into, guidance.combine(out))


def test_weights_count_where_there_are_as_many_rows_as_latents() -> None:
    guidance, out = Guidance(np.array([0, 1]), np.array([[0.5, 0.5], [0.0, 2.0]], np.float32)), rows(2)
    found = guidance.combine(out)
    np.testing.assert_allclose(found, np.stack([(out[0] + out[1]) / 2, 2 * out[1]]), rtol=1e-6, atol=1e-6)


def test_weights_are_float32_whatever_the_scale_is() -> None:
    assert classifier_free(1, np.float64(3.0)).weights.dtype == np.float32


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rescaled_guidance_has_the_contrast_of_the_positive_prompt(share: float) -> None:
    """Lin et al. 2023, equations 15 and 16, one latent after the other."""
    out = rows(6)
    guided = classifier_free(3, 7.5).combine(out)
    found = classifier_free(3, 7.5, share).combine(out)
    for one, own, positive in zip(found, guided, out[3:], strict=True):
        level = own * (positive.std(ddof=1) / own.std(ddof=1))
        np.testing.assert_allclose(one, share * level + (1 - share) * own, rtol=2e-6)  # a dozen roundings of float32


def dense(batch: int, scale: float) -> NDArray[np.float32]:
    """The matrix as it stands in the paper's formula: a row a latent, a column a row of the network."""
    one = np.eye(batch, dtype=np.float32)
    return np.concatenate([(1 - scale) * one, scale * one], axis=1).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_blocks_are_the_matrix(batch: int) -> None:
    guidance, out = classifier_free(batch, 7.5), rows(2 * batch)
    np.testing.assert_array_equal(guidance.matrix, dense(batch, 7.5))
    whole = Guidance(guidance.idx, guidance.matrix).combine(out)
    # two products and their sum, each rounded once, in another order where there are more latents
    np.testing.assert_allclose(guidance.combine(out), whole, rtol=0, atol=14 * 2.0**-23 * np.abs(out).max())


def test_a_latent_does_not_depend_on_those_beside_it() -> None:
    out = rows(2 * 5)
    together = classifier_free(5, 7.5).combine(out)
    for latent in range(5):
        np.testing.assert_array_equal(together[latent], classifier_free(1, 7.5).combine(out[latent::5])[0])


def test_three_weighted_prompts_as_blocks() -> None:
    weights, out = np.array([[-2.0, 0.5, 2.5], [0.25, 0.5, 0.25]], np.float32), rows(6)
    found = Guidance(np.tile(np.arange(2), 3), weights).combine(out)
    for latent in range(2):
        expected = sum(weights[latent, block] * out[2 * block + latent] for block in range(3))
        np.testing.assert_allclose(found[latent], expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_memory_grows_with_the_latents_and_not_with_their_square() -> None:
    """A matrix of 100,000 latents would take 80 GB."""
    guidance = classifier_free(100_000, 5.0)
    assert guidance.weights.nbytes + guidance.idx.nbytes < 4e6
    out = np.ones((200_000, 1), np.float32)
    np.testing.assert_array_equal(guidance.combine(out), np.ones((100_000, 1), np.float32))


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("weights", [[-4.0, 5.0], [-1.0, 0.5, 1.5]], ids=["guided", "weighted"])
def test_a_variance_is_that_of_the_positive_prompt(weights: list[float], rescale: float) -> None:
    """Guidance and its rescaling are for the mean's channels alone, as in GLIDE and DeepFloyd IF."""
    blocks = len(weights)
    out = np.concatenate([rows(2 * blocks), np.full((2 * blocks, 4, 3, 5), -1, np.float32)], axis=1)
    out[-2:, 4:] = 1.0  # of the positive prompts
    given = np.tile(np.array(weights, np.float32), (2, 1))
    guidance = Guidance(np.tile(np.arange(2), blocks), given, rescale=rescale)
    found = guidance.combine(out, channels=4)
    assert (found[:, 4:] == 1).all()
    np.testing.assert_array_equal(found[:, :4], guidance.combine(np.ascontiguousarray(out[:, :4])))
    dense_too = Guidance(guidance.idx, guidance.matrix, rescale=rescale).combine(out, channels=4)
    np.testing.assert_allclose(dense_too, found, rtol=0, atol=1e-5)  # a dozen roundings of numbers near 5


def test_a_variance_without_guidance_is_the_networks_own() -> None:
    out = np.concatenate([rows(2), rows(2)], axis=1)
    np.testing.assert_array_equal(classifier_free(2, 1.0).combine(out, channels=4), out)


def test_several_prompts_of_an_image_are_weighed_as_composable_diffusion_does() -> None:
    """n + scale * sum(w_k (p_k - n)), latent by latent; the numbers of one do not depend on those beside it."""
    rng = np.random.default_rng(0)
    parts, scale = [(1.0,), (0.7, -0.5, 1.2), (1.0, 0.3)], 3.0
    guidance = compose(parts, scale)
    out = rng.standard_normal((len(guidance.idx), 2, 3, 3), dtype=np.float32)
    assert guidance.idx.tolist() == [0, 1, 2, 0, 1, 1, 1, 2, 2]
    found, first = guidance.combine(out), 3
    for latent, weights in enumerate(parts):
        negative, own = out[latent], out[first : first + len(weights)]
        expected = negative + scale * sum(w * (p - negative) for w, p in zip(weights, own, strict=True))
        np.testing.assert_allclose(found[latent], expected, rtol=1e-5, atol=1e-5)  # float32 sums of few terms
        alone = compose([weights], scale).combine(np.concatenate([negative[None], own]))
        np.testing.assert_array_equal(alone[0], found[latent])
        first += len(weights)
    np.testing.assert_allclose(
        np.tensordot(guidance.matrix, out, 1), found, rtol=1e-5, atol=1e-5
    )  # as the fused step has it


def test_a_variance_is_that_of_the_last_prompt_of_each_image() -> None:
    out = np.arange(5 * 4, dtype=np.float32).reshape(5, 4, 1, 1)
    found = compose([(1.0, 1.0), (1.0,)], 2.0).combine(out, channels=2)
    np.testing.assert_array_equal(found[:, 2:], out[[3, 4], 2:])


@pytest.mark.parametrize("most", [0.5, 1.0, 100.0])
def test_the_norm_of_a_prediction_is_limited(most: float) -> None:
    """As in diffusers' pipeline of Z-Image, for each image by itself; one below the limit stays as it is."""
    out = rows(4)
    plain, limited = (guide(2, [7.5], most=each).combine(out) for each in (0.0, most))
    for before, after, positive in zip(plain, limited, out[2:], strict=True):
        norm, allowed = np.linalg.norm(before), most * np.linalg.norm(positive)
        np.testing.assert_allclose(after, before * min(1, allowed / norm), rtol=1e-6)
    zeros = np.zeros_like(out)
    np.testing.assert_array_equal(guide(2, [7.5], most=most).combine(zeros), zeros[:2])
