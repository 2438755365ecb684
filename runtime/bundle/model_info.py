"""The numbers of a model that the runtime needs beside its networks."""

from dataclasses import dataclass

from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.reading import JsonObject

LEVELS = 16  # of an autoencoder at most; all but the first halve the sides
LARGEST = 1 << 16  # channels, or latents along one side


@dataclass(frozen=True)
class ModelInfo:
    """Holds the numbers of a model that the runtime needs beside its networks."""

    channels: int  # of the latents
    factor: int  # pixels per latent along one side
    scaling_factor: float  # the U-Net sees the autoencoder's latents times this
    size: int  # the longer side, in pixels, of the images that the model was trained on
    zero_empty_prompt: bool = False  # embeddings of an absent negative prompt are zero (SDXL)
    aesthetic_score: bool = False  # time_ids end with an aesthetic score (SDXL's refiner)
    sides: tuple[int, int] | None = None  # height and width in pixels, where they are not both `size`
    consistency: bool = False  # a latent consistency model's own pipeline, whose strength shortens the grid

    @classmethod
    def read(cls, unet: JsonObject, vae: JsonObject, index: JsonObject) -> "ModelInfo":
        """Read the configs that diffusers writes.

        Args:
            unet: unet/config.json.
            vae: vae_decoder/config.json.
            index: model_index.json, which states three properties of pipelines; it may be empty.

        Raises:
            BundleError: A value is missing or invalid.
        """
        widths, file = vae.get("block_out_channels"), "vae_decoder/config.json"
        if not isinstance(widths, list) or not 0 < len(widths) <= LEVELS:
            found = None if widths is None else f"{widths!r:.100}"
            raise BundleError("bundle", f"{file} has no block_out_channels", expected="a list of widths", found=found)
        factor = 2 ** (len(widths) - 1)
        sides = _sides(unet.get("sample_size"))
        return cls(
            channels=_whole(file, "latent_channels", vae.get("latent_channels"), 4),
            factor=factor,
            scaling_factor=_positive(file, "scaling_factor", vae.get("scaling_factor"), 0.18215),
            size=max(sides) * factor,
            sides=None if sides[0] == sides[1] else (sides[0] * factor, sides[1] * factor),
            zero_empty_prompt=_truth("force_zeros_for_empty_prompt", index.get("force_zeros_for_empty_prompt")),
            aesthetic_score=_truth("requires_aesthetics_score", index.get("requires_aesthetics_score")),
            consistency="LatentConsistencyModel" in str(index.get("_class_name")),
        )

    @property
    def own(self) -> tuple[int, int]:
        """Return height and width, in pixels, of the images that the model was trained on."""
        return self.sides or (self.size, self.size)


def _sides(value: object) -> tuple[int, int]:
    """Read height and width in latents: one number for both, or a pair."""
    pair = value if isinstance(value, list) and len(value) == 2 else [value, value]
    height, width = (_whole("unet/config.json", "sample_size", side, 64) for side in pair)
    return height, width


def _whole(file: str, key: str, value: object, default: int) -> int:
    """Read a count; null and 0 stand for the default, as in old configs of diffusers."""
    number = default if value is None or value == 0 else value
    if type(number) is float and number.is_integer():
        number = int(number)
    if type(number) is not int or not 0 < number <= LARGEST:
        raise BundleError("bundle", f"invalid {key} in {file}", expected=f"1 to {LARGEST}", found=f"{value!r:.100}")
    return number


def _positive(file: str, key: str, value: object, default: float) -> float:
    """Read a number above 0; null and 0 stand for the default."""
    number = default if value is None or value == 0 else value
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 < number < 1e9:
        raise BundleError("bundle", f"invalid {key} in {file}", expected="a number above 0", found=f"{value!r:.100}")
    return float(number)


def _truth(key: str, value: object) -> bool:
    """Read true or false; null is false."""
    if value not in (None, True, False):
        problem = f"invalid {key} in model_index.json"
        raise BundleError("bundle", problem, expected="true or false", found=f"{value!r:.100}")
    return bool(value)
