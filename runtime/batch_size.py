"""How many images are drawn at once, where nobody says: what engines were built for, else a stated number of pixels."""

from collections.abc import Sequence

from .bundle import STEP, Bundle
from .engine_files import Bucket, EngineFile, engines
from .errors import LdmrtError
from .request import Request

# Pixels that the networks see at once: 16 images of 512x512, whose decoder takes one at a time.
PIXELS = 16 * 512 * 512
MOST = 2**16  # images of a request whose result is held as a whole
INPUTS = {"unet": "sample", STEP: "state"}


def unet_profiles(bundle: Bundle, backend: str) -> tuple[tuple[str, Bucket], ...]:
    """What the engines of a bundle's U-Net, or of its folded step, were built for, where the backend may run them."""
    if backend.startswith("onnxruntime") or not bundle.manifest:
        return ()
    recipes = [one.recipe for one in engines(bundle.path) if isinstance(one, EngineFile)]
    mine = [one for one in recipes if one.component in INPUTS and backend in ("auto", one.backend)]
    return tuple((one.component, bucket) for one in mine for bucket in one.profile)


def images_at_once(
    profiles: Sequence[tuple[str, Bucket]], size: tuple[int, int], factor: int, *, guided: bool
) -> int:  # fmt: skip
    """How many images of a size (height, width) in pixels one call takes: the most of any engine that is for the size,
    and where there is none as many as `PIXELS` are.
    """
    latent = size[0] // factor, size[1] // factor
    found = []
    for component, bucket in profiles:
        shapes = bucket.get(INPUTS[component])
        if shapes is None or not shapes.holds((*shapes.max[:-2], *latent)):
            continue
        rows = shapes.max[0]
        found.append(rows if component == STEP or not guided else rows // 2)
    return max(1, max(found, default=PIXELS // (size[0] * size[1])))


def bounded(request: Request) -> Request:
    """The request, where it is not of more images than one call may hold."""
    if request.images > MOST:
        hint = "Pipeline.draw(request.parts(16)), which holds those of one part"
        problem = "too many images for one call"
        raise LdmrtError("request", problem, expected=f"at most {MOST}", found=request.images, hint=hint)
    return request
