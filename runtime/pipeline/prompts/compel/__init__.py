"""The prompt syntax of the library compel 2.5."""
