"""A client of a directory; what its methods do is in tests/server/test_directory.py."""

from __future__ import annotations

import pytest

from tensorcall.client.directory import DirectoryClient
from tensorcall.server import Server, ServerConfig
from tensorcall.wire.errors import Cancelled, Unreachable


def test_a_client_that_was_closed_says_so() -> None:
    server = Server([], config=ServerConfig(bind="127.0.0.1:0"))
    server.host_directory()
    with server:
        client = DirectoryClient(server.address)
        watch = client.watch()
        next(watch)
        client.close()
        client.close()
        with pytest.raises(Cancelled):
            client.members()
        with pytest.raises(Cancelled):
            client.watch()


def test_nobody_there_is_unreachable() -> None:
    with DirectoryClient("127.0.0.1:1") as client:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 can't be reached"):
            client.join("a", "h:1", 1)
        with pytest.raises(Unreachable):
            next(client.watch())
