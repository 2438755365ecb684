"""Serve on a Ray cluster: replicas on many machines draw, each with a batcher of its own."""

from .builder import app

__all__ = ["app"]
