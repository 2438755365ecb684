"""Answer as AUTOMATIC1111 does: images, the parameters, and what is known of each image."""

import json
import time
from typing import Any

import ldmrt
from ldmrt.runtime.pipeline.infotext.text import Infotext, lora_hashes
from ldmrt.serve.http.images import in_base64, loaded
from ldmrt.serve.http.state import Server
from ldmrt.serve.jobs.job import Job

from .bodies import Drawing
from .options import NOISE, OWN, SKIP, hash_of


def answered(server: Server, job: Job, asked: Drawing, options: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request that is done.

    Returns:
        `images` in base64; `parameters`, the fields of the body; and `info`, JSON in a text.
    """
    said = described(server, job, asked, options)
    images = []
    if asked.send_images:
        images = in_base64(job, asked.finished(job.request, job.result(0).pixels), said["infotexts"])
    parameters = asked.model_dump()
    parameters |= {name: None for name in ("init_images", "mask") if name in parameters}
    return {"images": images, "parameters": parameters, "info": json.dumps(said, ensure_ascii=False)}


def described(server: Server, job: Job, asked: Drawing, options: dict[str, Any]) -> dict[str, Any]:
    """Return what there is to say of the images of a job."""
    result = job.result(0)
    prompt, negative = texts_of(job)
    first = job.request.padding_mask_crop is not None or job.request.hires is not None
    drawn = job.lane.size if first else result.pixels.shape[1:3]
    (height, width), seeds = drawn, result.seeds
    subseeds = job.request.variation_seeds or [-1] * len(seeds)  # none is drawn where the strength is 0
    extra = {} if options[SKIP] == 1 else {"Clip skip": options[SKIP]}
    extra |= {} if options[NOISE] == OWN else {"RNG": options[NOISE]}
    extra |= asked.texts(job.request)
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(seeds),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": asked.subseed_strength,
        "width": width,
        "height": height,
        "sampler_name": asked.sampler,
        "cfg_scale": asked.cfg_scale,
        "steps": asked.steps,
        "batch_size": asked.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.model,
        "sd_model_hash": hash_of(server, job.model)[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": asked.denoising_strength,
        "extra_generation_params": extra,
        "index_of_first_image": 0,
        "infotexts": [
            text_of(server, job, asked, pair, (width, height), extra) for pair in zip(seeds, subseeds, strict=True)
        ],
        "styles": asked.styles or [],
        "job_timestamp": stamped(job),
        "clip_skip": options[SKIP],
        "is_using_inpainting_conditioning": False,
        "version": f"ldmrt {ldmrt.__version__}",
    }


def texts_of(job: Job) -> tuple[str, str]:
    """Return the prompt and the negative prompt of a job, with the styles around them."""
    return job.request.prompts[0], str(job.request.negative_prompt or "")


def text_of(
    server: Server, job: Job, asked: Drawing, seeds: tuple[int, int], size: tuple[int, int], extra: dict[str, Any]
) -> str:
    """Return the text about an image that AUTOMATIC1111 writes under it."""
    said: dict[str, Any] = {"Steps": asked.steps, "Sampler": asked.sampler}
    if asked.scheduler:
        said["Schedule type"] = asked.scheduler
    said |= {"CFG scale": asked.cfg_scale, "Seed": seeds[0], "Size": f"{size[0]}x{size[1]}"}
    if digest := hash_of(server, job.model):
        said["Model hash"] = digest[:10]
    said["Model"] = job.model
    if asked.subseed_strength:
        said |= {"Variation seed": seeds[1], "Variation seed strength": asked.subseed_strength}
    said |= {} if job.request.eta is None else {"Eta": job.request.eta}
    said |= {**extra, **lora_hashes(job.request, loaded(job)), "Version": f"ldmrt {ldmrt.__version__}"}
    return str(Infotext(*texts_of(job), {name: str(value) for name, value in said.items()}))


def stamped(job: Job) -> str:
    """Return when a job was accepted, as AUTOMATIC1111 writes it: 20240131235959, local time."""
    ago = time.monotonic() - job.accepted
    return time.strftime("%Y%m%d%H%M%S", time.localtime(time.time() - ago))
