"""Where a worker listens, and where the others reach it."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any
from urllib.parse import urlsplit

BIND, ADVERTISE = "TENSORCALL_RPC_BIND", "TENSORCALL_RPC_ADVERTISE"
_LOOPBACK = "127.0.0.1"


def to_bind(options: Any) -> str:
    """Returns where to listen, HOST:PORT: as the options say, or the environment, or the way to the others.

    Raises:
        ValueError: what was set is no address.
    """
    asked = getattr(options, "bind", None) or os.environ.get(BIND)
    if asked:
        return _with_port(asked, "0", BIND)
    return f"{_host_of_way(*_meeting_place(options.init_method))}:0"


def to_advertise(options: Any, bound: str) -> str:
    """Returns where the others reach this worker, HOST:PORT.

    Args:
        options: the options.
        bound: where it listens, HOST:PORT.

    Raises:
        ValueError: what was set is no address.
    """
    host, _, port = bound.rpartition(":")
    asked = getattr(options, "advertise", None) or os.environ.get(ADVERTISE)
    if asked:
        return _with_port(asked, port, ADVERTISE)
    if host in ("0.0.0.0", "[::]", "::"):
        return f"{_host_of_way(*_meeting_place(options.init_method))}:{port}"
    return bound


def _meeting_place(init_method: str) -> tuple[str, int]:
    """Returns host and port of the rendezvous; no host if it is on this machine."""
    url = urlsplit(init_method)
    if url.scheme == "env":
        host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
        return host, int(port) if port.isdigit() else 0
    if url.scheme == "tcp":
        return url.hostname or "", url.port or 0
    return "", 0


def _host_of_way(host: str, port: int) -> str:
    """Returns the address of the interface that leads to a host."""
    if not host:
        return _LOOPBACK
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as way:
            # Of a datagram socket this sends nothing; it only looks up the route.
            way.connect(address)
            found = str(way.getsockname()[0])
    except OSError:
        return _LOOPBACK
    return f"[{found}]" if ":" in found else found


def _with_port(address: str, port: str, name: str) -> str:
    """Adds a port to an address that has none."""
    host, colon, given = address.rpartition(":")
    if colon and given.isascii() and given.isdigit() and (host.startswith("[") or ":" not in host) and host:
        if int(given) > 65535:
            raise ValueError(f"{name}: {address!r} is no address: ports end at 65535")
        return address
    bare = address.strip("[]")
    try:
        if ipaddress.ip_address(bare).version == 6:
            return f"[{bare}]:{port}"
    except ValueError:
        if ":" in bare or not bare or any(character.isspace() for character in bare):
            raise ValueError(f"{name}: {address!r} is no address: write HOST or HOST:PORT") from None
    return f"{bare}:{port}"
