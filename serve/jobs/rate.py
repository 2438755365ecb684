"""Estimate how long work takes from how long it took."""

SHARE = 0.1  # of each measurement in the average: that of the last ten calls or so


class Rate:
    """Averages the seconds that a row takes for each pixel of its image, the last calls most."""

    def __init__(self) -> None:
        """Begin without a measurement."""
        self._each: float | None = None

    def note(self, rows: int, pixels: int, seconds: float) -> None:
        """Take a measurement: so many rows of images of so many pixels took so many seconds."""
        each = seconds / (rows * pixels)
        self._each = each if self._each is None else (1 - SHARE) * self._each + SHARE * each

    def seconds(self, work: float) -> float:
        """Return how long so many rows times pixels will take; 0 before the first measurement."""
        return work * (self._each or 0.0)
