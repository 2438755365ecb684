"""Read single values of the configs that diffusers writes: null and 0 stand for a default, as in old ones."""

from ldmrt.runtime.errors import BundleError

LARGEST = 1 << 16  # channels, or latents along one side


def sides_of(value: object) -> tuple[int, int]:
    """Read height and width in latents: one number for both, or a pair."""
    pair = value if isinstance(value, list) and len(value) == 2 else [value, value]
    height, width = (whole("unet/config.json", "sample_size", side, 64) for side in pair)
    return height, width


def whole(file: str, key: str, value: object, default: int) -> int:
    """Read a count; null and 0 stand for the default, as in old configs of diffusers."""
    number = default if value is None or value == 0 else value
    if type(number) is float and number.is_integer():
        number = int(number)
    if type(number) is not int or not 0 < number <= LARGEST:
        raise BundleError("bundle", f"invalid {key} in {file}", expected=f"1 to {LARGEST}", found=f"{value!r:.100}")
    return number


def positive(file: str, key: str, value: object, default: float) -> float:
    """Read a number above 0; null and 0 stand for the default."""
    number = default if value is None or value == 0 else value
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 < number < 1e9:
        raise BundleError("bundle", f"invalid {key} in {file}", expected="a number above 0", found=f"{value!r:.100}")
    return float(number)


def truth(key: str, value: object) -> bool:
    """Read true or false; null is false."""
    if value not in (None, True, False):
        problem = f"invalid {key} in model_index.json"
        raise BundleError("bundle", problem, expected="true or false", found=f"{value!r:.100}")
    return bool(value)
