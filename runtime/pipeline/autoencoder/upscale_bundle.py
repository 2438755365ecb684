"""The bundle of an upscale model, which has one network of pixels and neither stages nor a scheduler."""

from dataclasses import dataclass
from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle, read_manifest
from ldmrt.runtime.bundle.contents import bundle_errors
from ldmrt.runtime.bundle.graphs import UPSCALER
from ldmrt.runtime.bundle.manifest import HINT, MANIFEST, UPSCALE_MODEL, check_named
from ldmrt.runtime.errors import BundleError, LdmrtError
from ldmrt.runtime.files.reading import JsonObject, read_json

# The numbers that the manifest holds, with the largest value of each.
NUMBERS = {"scale": 16, "multiple": 128, "minimum": 128}
LONGEST = 200  # characters of a name


@dataclass(frozen=True)
class UpscaleProperties:
    """Says what an upscale model is; the names are those of `ldmrt.model.vision.upscale_model.UpscaleNetwork`."""

    name: str
    architecture: str
    scale: int
    multiple: int
    minimum: int

    @classmethod
    def from_json(cls, value: object) -> "UpscaleProperties":
        """Read the entry of a manifest.

        Raises:
            BundleError: It is damaged.
        """
        given: JsonObject = value if isinstance(value, dict) else {}
        texts = [given.get(name) for name in ("name", "architecture")]
        numbers = [given.get(name) for name in NUMBERS]
        if not all(isinstance(text, str) and text.isprintable() and 0 < len(text) <= LONGEST for text in texts):
            raise _damaged("two names")
        for number, (name, most) in zip(numbers, NUMBERS.items(), strict=True):
            if type(number) is not int or not int(name != "minimum") <= number <= most:
                raise _damaged(f"{name} of at most {most}")
        return cls(**{name: given[name] for name in cls.__dataclass_fields__})


def _damaged(expected: str) -> BundleError:
    return BundleError("bundle", f"{MANIFEST} is damaged at {UPSCALE_MODEL}", expected=expected, hint=HINT)


def is_upscale_model(path: Path) -> bool:
    """Tell whether a folder is the bundle of an upscale model, by its manifest alone; False where it cannot be read."""
    try:
        return UPSCALE_MODEL in read_json("bundle", path / MANIFEST)
    except LdmrtError:
        return False


def open_upscale_bundle(path: Path, *, check: bool = True) -> tuple[Bundle, UpscaleProperties]:
    """Open the bundle of an upscale model.

    Args:
        path: The directory.
        check: Compare every file with its size and SHA-256 in the manifest.

    Raises:
        BundleError: The directory is missing, holds something else, or is damaged.
    """
    with bundle_errors():
        manifest = read_manifest(path, check=check, stamped=True)
        if UPSCALE_MODEL not in manifest:
            hint = "ldmrt export MODEL.pth BUNDLE"
            raise BundleError("bundle", f"{path} is no upscale model", expected="a bundle of one", hint=hint)
        properties = UpscaleProperties.from_json(manifest[UPSCALE_MODEL])
        check_named(manifest, (UPSCALER,))
        bundle = Bundle(path, manifest, {}, ())
        ends = [[(spec.name, spec.shape) for spec in side] for side in bundle.specs(UPSCALER)]
        side = tuple(f"{name}/{properties.scale}" if properties.scale > 1 else name for name in ("height", "width"))
        if ends != [[("image", ("batch", 3, *side))], [("enlarged", ("batch", 3, "height", "width"))]]:
            raise _damaged("one image in and one out")
        for file in bundle.models(UPSCALER):
            bundle.contents.graph(UPSCALER, file.relative_to(path).as_posix())
        return bundle, properties
