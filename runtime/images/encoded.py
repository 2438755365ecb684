"""Hold an image file that is in memory."""

import io


class EncodedImage(io.BytesIO):
    """Holds the bytes of an image file, and the name that messages have."""

    def __init__(self, name: str, content: bytes) -> None:
        """Hold bytes, which are not checked."""
        super().__init__(content)
        self.name = name
