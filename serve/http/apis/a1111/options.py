"""Hold the options that a caller has set, as AUTOMATIC1111's clients set them before they draw."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request as HTTPRequest

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.nearest import suggestion
from ldmrt.serve.http.state import Server, server_of

MODEL, SKIP, NOISE = "sd_model_checkpoint", "CLIP_stop_at_last_layers", "randn_source"
# Random number generator sources, and whose noise that is here; AUTOMATIC1111 itself has the first three.
SOURCES: Mapping[str, str] = {"NV": "a1111", "CPU": "torch-cpu", "GPU": "torch-cuda", "ldmrt": "ldmrt"}
OWN = "ldmrt"
MOST_SKIPPED = 12
# Options that are not heeded, with the values that ask for nothing; other values would change the images.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "sd_vae": ("Automatic", "None", None),
    "samples_format": ("png",),
    "eta_noise_seed_delta": (0,),
    "img2img_fix_steps": (False,),
    "img2img_color_correction": (False,),
    "initial_noise_multiplier": (1, 1.0),
    "token_merging_ratio": (0, 0.0),
    "enable_pnginfo": (True,),
    "return_grid": (False,),
}
# Options about files and pages, which change no image.
IGNORED = ("samples_save", "grid_save", "save_images_before_highres_fix", "filter_nsfw", "live_previews_enable")


def title_of(server: Server, name: str) -> str:
    """Return the title of a model: its name, and the beginning of its manifest's hash."""
    digest = hash_of(server, name)
    return f"{name} [{digest[:10]}]" if digest else name


def hash_of(server: Server, name: str) -> str:
    """Return the SHA-256 of the manifest that a model's certificate is of; "" for a model without one."""
    certificate = server.service.models[name].certificate
    return "" if certificate is None else str(certificate.about.get("manifest", ""))


def model_called(server: Server, title: object) -> str:
    """Return the model of a title, a name or a hash.

    Raises:
        InvalidRequest: There is none.
    """
    for name in server.service.models:
        digest = hash_of(server, name)
        if title in (name, title_of(server, name)) or (digest and title in (digest, digest[:10])):
            return name
    names = list(server.service.models)
    problem = f"no model {title!r:.100}{suggestion(title, names)}"
    raise InvalidRequest(MODEL, problem, expected=", ".join(names))


def checked(server: Server, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that are heeded: the model, the layers of its text encoder, and whose noise it is.

    Raises:
        InvalidRequest: An option is unknown, or has a value that is not served.
    """
    heeded = dict[str, Any]()
    for name, value in options.items():
        if name == MODEL:
            heeded[MODEL] = model_called(server, value)
        elif name == SKIP:
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            if not whole or not 1 <= value <= MOST_SKIPPED:
                expected = f"1, for none, to {MOST_SKIPPED}"
                raise InvalidRequest(SKIP, "invalid option", expected=expected, found=f"{value!r:.50}")
            heeded[SKIP] = int(value)
        elif name == NOISE:
            if not isinstance(value, str) or value not in SOURCES:
                expected = ", ".join(SOURCES)
                raise InvalidRequest(NOISE, "unsupported", expected=expected, found=f"{value!r:.50}")
            heeded[NOISE] = value
        elif name in FIXED:
            if value not in FIXED[name]:
                raise InvalidRequest(f"{name}", "unsupported", expected=f"{FIXED[name][0]}", found=f"{value!r:.50}")
        elif name not in IGNORED:
            known = [MODEL, SKIP, NOISE, *FIXED, *IGNORED]
            problem = f"unknown option {name!r:.50}{suggestion(name, known)}"
            raise InvalidRequest("options", problem, expected=", ".join(known))
    return heeded


def of_caller(http: HTTPRequest) -> dict[str, Any]:
    """Return the options that a caller's API key has set; callers without keys share theirs."""
    owner = str(getattr(http.state, "owner", ""))
    kept: dict[str, dict[str, Any]] | None = getattr(http.app.state, "a1111_options", None)
    if kept is None:
        kept = http.app.state.a1111_options = {}
    first = next(iter(server_of(http).service.models))
    return kept.setdefault(owner, {MODEL: first, SKIP: 1, NOISE: OWN})
