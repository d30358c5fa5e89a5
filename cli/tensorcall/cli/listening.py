"""Where a server listens: who reaches it there, how others learn of it, and why it can't."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import tempfile
from pathlib import Path


def is_loopback(bind: str) -> bool:
    """Whether only this machine reaches an address."""
    if bind.startswith(("unix:", "unix-abstract:")):
        return True
    host = _host(bind)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def why_not(bind: str) -> str:
    """Tells why an address could not be bound, in the system's words: gRPC keeps them to itself. "" if it can be."""
    try:
        if bind.startswith("unix:"):
            path = bind.removeprefix("unix:")
            parent = Path(path).absolute().parent
            return "" if parent.is_dir() else f"there is no directory {str(parent)!r}"
        found = socket.getaddrinfo(
            _host(bind), int(bind.rpartition(":")[2]), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                # As gRPC does: a port that only lingers after its last server is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                # Two sockets may be bound to one address, but not both listen.
                probe.listen()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _host(bind: str) -> str:
    return bind.rpartition(":")[0].strip("[]")


class PortFile:
    """A file that holds the port as long as the server listens. Appears whole, so that one may wait for it."""

    def __init__(self, path: str) -> None:
        """Makes sure that the file can be written, and takes away an older one.

        Raises:
            OSError: it can't.
        """
        self._path = path
        number, self._draft = tempfile.mkstemp(prefix=f".{Path(path).name}.", dir=Path(path).absolute().parent)
        os.close(number)
        # Readable by all, as a file that open() makes: a port is no secret.
        os.chmod(self._draft, 0o644)
        self.remove()

    def write(self, port: int) -> None:
        """Lets the file appear."""
        Path(self._draft).write_text(f"{port}\n")
        os.replace(self._draft, self._path)

    def remove(self) -> None:
        """Removes the file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def close(self) -> None:
        """Removes the file and its draft."""
        self.remove()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._draft)
