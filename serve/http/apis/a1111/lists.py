"""Serve what AUTOMATIC1111's clients ask about a server: models, samplers, options, and lists that are empty here."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest

from ldmrt.runtime.pipeline.infotext.hires import HIRES_NAMES, LATENT_UPSCALERS
from ldmrt.runtime.pipeline.infotext.samplers import LABELS, OWN, SAMPLERS
from ldmrt.serve.http.errors import DRAWN
from ldmrt.serve.http.state import server_of

from .options import FIXED, MODEL, checked, hash_of, of_caller, title_of

router = APIRouter()


@router.get("/samplers")
async def samplers() -> list[dict[str, Any]]:
    """List the samplers, AUTOMATIC1111's names first, then the everyday names."""
    named: list[dict[str, Any]] = [
        {"name": name, "aliases": [*sampler.aliases, sampler.scheduler], "options": {}}
        for name, sampler in SAMPLERS.items()
    ]
    return named + [{"name": name, "aliases": [], "options": {}} for name in OWN]


@router.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """List the schedulers, which are spacings of noise levels."""
    return [
        {
            "name": label.casefold().replace(" ", "_"),
            "label": label,
            "aliases": ["SGMUniform"] if label == "SGM Uniform" else None,
            "default_rho": 7.0 if label == "Karras" else -1,
            "need_inner_model": "Uniform" in label,
        }
        for label in LABELS
    ]


@router.get("/sd-models")
async def sd_models(http: HTTPRequest) -> list[dict[str, Any]]:
    """List the models; `filename` is a name, and no path of this machine."""
    server = server_of(http)
    return [
        {
            "title": title_of(server, name),
            "model_name": name,
            "hash": hash_of(server, name)[:10] or None,
            "sha256": hash_of(server, name) or None,
            "filename": name,
            "config": None,
        }
        for name in server.service.models
    ]


@router.get("/options")
async def options(http: HTTPRequest) -> dict[str, Any]:
    """Return the options of the caller."""
    own = of_caller(http)
    fixed = {name: values[0] for name, values in FIXED.items()}
    server = server_of(http)
    digest = hash_of(server, own[MODEL])
    return {**fixed, **own, MODEL: title_of(server, own[MODEL]), "sd_checkpoint_hash": digest}


@router.post("/options", responses=DRAWN)
async def set_options(http: HTTPRequest, given: dict[str, Any]) -> None:
    """Change options for the requests that the caller sends from now on."""
    of_caller(http).update(checked(server_of(http), given))


@router.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    """Return the flags of AUTOMATIC1111's command that this server was started with: none."""
    return {}


@router.get("/memory")
async def memory() -> dict[str, Any]:
    """Tell of no memory: what is in use is nobody's affair but the server's."""
    return {"ram": {}, "cuda": {}}


@router.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    """List the scripts: none."""
    return {"txt2img": [], "img2img": []}


@router.get("/embeddings")
async def embeddings() -> dict[str, dict[str, Any]]:
    """List the embeddings that a prompt can name: none, as an export merges them."""
    return {"loaded": {}, "skipped": {}}


@router.get("/upscalers")
async def upscalers() -> list[dict[str, Any]]:
    """List what enlarges pixels between two passes."""
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
        for name in HIRES_NAMES
        if name not in LATENT_UPSCALERS
    ]


@router.get("/latent-upscale-modes")
async def latent_upscale_modes() -> list[dict[str, str]]:
    """List how latents are enlarged between two passes."""
    return [{"name": name} for name in LATENT_UPSCALERS]


@router.get("/loras")
async def loras(http: HTTPRequest) -> list[dict[str, Any]]:
    """List the LoRAs that a prompt can name, each once; `path` is a file's name, and no path of this machine."""
    records = [pipeline.loras.record(pipeline.loras.names) for pipeline in server_of(http).service.models.values()]
    files = {name: record["file"] for one in records for name, record in one.items()}
    return [{"name": name, "alias": name, "path": Path(path).name, "metadata": {}} for name, path in files.items()]


@router.get("/prompt-styles")
async def prompt_styles(http: HTTPRequest) -> list[dict[str, str]]:
    """List the styles, with the texts that they put around a prompt and a negative prompt."""
    styles = server_of(http).styles
    return [
        {"name": name, "prompt": style.prompt, "negative_prompt": style.negative_prompt}
        for name, style in styles.items()
    ]


@router.get("/sd-vae")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/extensions")
async def empty() -> list[dict[str, Any]]:
    """List what this server has none of."""
    return []


@router.post("/refresh-checkpoints")
@router.post("/refresh-loras")
@router.post("/refresh-vae")
async def refresh() -> None:
    """Do nothing: the models are those that the server was started with."""
