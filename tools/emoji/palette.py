"""The twelve background colors of the emoji images, and CIE L*a*b* to compare colors."""

import numpy as np
from numpy.typing import NDArray

PALETTE: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 60),
    "green": (50, 160, 70),
    "blue": (45, 95, 215),
    "purple": (130, 60, 170),
    "pink": (250, 160, 195),
    "cyan": (80, 205, 220),
    "brown": (120, 75, 45),
}

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE_D65 = np.array([0.95047, 1.0, 1.08883])


def lab(rgb: NDArray) -> NDArray[np.float64]:
    """Convert sRGB in 0..255, (..., 3), to CIE 1976 L*a*b* under D65, whose distances are CIE76 color differences."""
    linear = np.asarray(rgb, np.float64) / 255.0
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE_D65
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)


def nearest_colour(rgb: NDArray) -> str:
    """Return the name of the palette color nearest to an sRGB color (3,) in L*a*b*."""
    distances = np.linalg.norm(lab(np.array(list(PALETTE.values()))) - lab(rgb), axis=-1)
    return list(PALETTE)[int(distances.argmin())]
