"""Images that come in, of every format, as 8-bit RGB."""
