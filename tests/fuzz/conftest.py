"""The bundle that is damaged here."""

from ..tools.conftest import certified

__all__ = ["certified"]
