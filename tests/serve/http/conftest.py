"""A client of the server that the tests of serving share."""

from collections.abc import Iterator

import httpx
import pytest

from ..conftest import Running


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as opened:
        yield opened
