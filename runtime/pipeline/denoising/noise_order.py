"""Order the noise of a request as the program drew it that is named, and refuse what that program draws otherwise."""

from collections.abc import Sequence

from ldmrt.runtime.bundle.stages import KL, MASK_KINDS, NOISED_KINDS, Stage
from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.request.images import GivenImages
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.config import Config
from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, MASKED, NOISED, of_stage
from ldmrt.runtime.samplers.noise.sources import LDMRT, WEB_UI, CountedNoise, NoiseSource, OrderedNoise, Shape
from ldmrt.runtime.samplers.noise.variation import VariedNoise
from ldmrt.runtime.samplers.plan import Plan
from ldmrt.runtime.samplers.registry import find_scheduler

HINT = "noise ldmrt, which draws a different image"
# Classes of diffusers that draw by Brownian trees, or several times in a row of ours.
OWN_DRAWS = ("DPMSolverSDEScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler")


def check_noise(request: Request, stage: Stage, config: Config, plan: Plan) -> None:
    """Refuse what cannot be drawn as the named program does.

    Args:
        request: The request.
        stage: The stage that it runs.
        config: The scheduler's config, with the request's settings.
        plan: Its sampler's table.

    Raises:
        InvalidRequest: The sampler's noise, or the noise of an image's latents, is not drawn from the seed alone.
    """
    if request.noise == LDMRT:
        return
    scheduler, asked = find_scheduler(config, request.scheduler)
    algorithm = str({**config, **asked}.get("algorithm_type", ""))
    trees = scheduler.class_name in OWN_DRAWS or (request.noise == WEB_UI and algorithm.startswith("sde"))
    if trees and any(map(plan.draws, range(plan.rows))):
        problem = f"noise {request.noise} cannot be drawn for this sampler"
        expected = "a sampler that draws from the seed's stream, such as euler_a"
        raise InvalidRequest("request", problem, expected=expected, found=scheduler.class_name, hint=HINT)
    if request.noise == WEB_UI and request.image is not None and not stage.takes_image and stage.space.codec == KL:
        problem = "noise a1111 cannot start from an image"
        expected = "no image: the web UI encodes it with noise that no seed decides"
        raise InvalidRequest("request", problem, expected=expected, hint="noise torch-cpu, as diffusers draws it")


def noise_of(request: Request, stage: Stage, given: GivenImages) -> NoiseSource:
    """Return the source of a request's noise.

    Args:
        request: The request.
        stage: The stage that it runs.
        given: Its image and mask.
    """
    order = [(of_stage(stream, stage.number), shape) for stream, shape in _before_rows(request, stage, given)]
    source = _source(request, request.seeds, order)
    if not request.variation_seeds:
        return source
    first = of_stage(FIRST, stage.number)
    other = _source(request, request.variation_seeds, [each for each in order if each[0] == first])
    return VariedNoise(source, other, request.variation_strength, first)


def _source(request: Request, seeds: Sequence[int], order: Sequence[tuple[int, Shape]]) -> NoiseSource:
    """Return what draws by the seeds of images, as the request asks."""
    return CountedNoise(seeds) if request.noise == LDMRT else OrderedNoise(request.noise, seeds, order)


def _before_rows(request: Request, stage: Stage, given: GivenImages) -> list[tuple[int, Shape]]:
    """Return the draws of diffusers' pipelines before the first row; those of the web UI are the first latents."""
    factor = stage.space.factor
    latents = (stage.space.channels, given.size[0] // factor, given.size[1] // factor)
    kinds, encodes = {source.kind for source in stage.beside}, stage.space.codec == KL
    fills = "mask_pixels" in kinds  # FLUX.1 Fill
    encoded = encodes and given.colours is not None and not stage.takes_image
    if encoded and given.mask is not None:  # not encoded where the network is given what the mask leaves
        encoded = fills or not (stage.takes_mask and request.strength == 1.0)
    image = [(IMAGE, latents)] if encoded or (encodes and "control_image" in kinds) else []
    masked = [(MASKED, latents)] if encodes and (given.mask is not None or kinds & {*MASK_KINDS}) else []
    goes_on = request.denoising_start is not None and given.mask is not None
    first = [(FIRST, latents)] if request.latents is None or goes_on else []
    noised: list[tuple[int, Shape]] = []
    if given.colours is not None and kinds & {*NOISED_KINDS}:
        times = [int(source.setting("times")) for source in stage.beside if source.kind == "enlarged_image"]
        channels, height, width = given.colours.shape[1:]
        noised = [(NOISED, (channels, height * max([1, *times]), width * max([1, *times])))]
    enlarged = "enlarged_image" in kinds  # DeepFloyd IF draws it after the first latents, the x4 upscaler before
    before, after = ([], noised) if enlarged else (noised, [])
    return [*before, *image, *first, *after, *masked]
