"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.servers import ServerProcess

from tensorcall.client import Remote, connect


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """One real server process for all tests that do not harm it."""
    with ServerProcess() as process:
        yield process
        code, log = process.end()
    assert code == 0, log
    assert "defect" not in log, log


@pytest.fixture(params=["session", "call"])
def carrier(request: pytest.FixtureRequest) -> Any:
    """Each way of carrying calls."""
    return request.param


@pytest.fixture
def remote(server: ServerProcess, carrier: Any) -> Iterator[Remote]:
    """A connection to that server, over each carrier."""
    with connect(server.address, carrier=carrier) as connected:
        yield connected
