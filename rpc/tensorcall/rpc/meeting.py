"""Where the workers of an elastic world find their directory: at an address, or by a file."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tensorcall.rpc import world_secret
from tensorcall.rpc.world_secret import SECRET
from tensorcall.server.server import Server

_LOOPBACK = "127.0.0.1"
_CONNECT_SECONDS = 1.0

Serve = Callable[[str], Server]
"""Starts what keeps the directory, at a HOST:PORT; raises OSError if it can't listen there."""


class Meeting(ABC):
    """A place where workers find the directory of their world."""

    world: str = ""
    """The name of the world: a directory may keep several."""

    secret: str = ""
    """What its members show each other."""

    @abstractmethod
    def address(self) -> str:
        """Returns where the directory is, HOST:PORT, if there is one; empty if there never was."""

    @abstractmethod
    def host(self, serve: Serve, own_address: str) -> Server | None:
        """Has this process keep the directory, if nobody else does.

        Args:
            serve: starts it.
            own_address: where others reach this worker, HOST:PORT.

        Raises:
            OSError: it can't.
        """


def find(init_method: str) -> Meeting:
    """Finds the place that a URL names: tcp://HOST:PORT, env:// (MASTER_ADDR and MASTER_PORT), or file:///PATH.

    The path of a tcp:// URL is the name of the world.

    Raises:
        ValueError: it names none.
        RuntimeError: there must be a secret, and is none.
    """
    url = urlsplit(init_method)
    if url.scheme == "file":
        return _File(Path(unquote(url.path)))
    if url.scheme == "env":
        host, port_text = (_environment(name) for name in ("MASTER_ADDR", "MASTER_PORT"))
        if not port_text.isdigit() or not 0 < int(port_text) < 65536:
            raise ValueError(f"MASTER_PORT is {port_text!r}: it must be a port, 1 to 65535")
        return _Tcp(host, int(port_text), "")
    if url.scheme == "tcp":
        try:
            port = url.port
        except ValueError:
            port = None
        if not url.hostname or not port:
            raise ValueError(f"init_method is {init_method!r}: write tcp://HOST:PORT")
        return _Tcp(url.hostname, port, unquote(url.path).strip("/"))
    raise ValueError(
        f"init_method is {init_method!r}: workers of a world without ranks meet at tcp://HOST:PORT, env:// or file://"
    )


class _Tcp(Meeting):
    """An address: whoever listens there keeps the directory."""

    def __init__(self, host: str, port: int, world: str) -> None:
        self.world = world
        self._port = port
        found = _resolved(host)
        self._loopback = all(ip_address(each).is_loopback for each in found)
        # One address and no name: a name may stand for several, and each of them would be a place of its own.
        self._hosts = found[:1] if self._loopback else [each for each in found if not ip_address(each).is_loopback]
        self._address = f"{_bracketed(self._hosts[0])}:{port}" if self._loopback else f"{_bracketed(host)}:{port}"
        self.secret = world_secret.configured() or self._derived(host)

    def _derived(self, host: str) -> str:
        if not self._loopback:
            raise RuntimeError(
                f"the workers of this world meet at {host}:{self._port}, which others may reach, too: set {SECRET} to "
                "the same secret for all workers, for example to what `openssl rand -hex 32` prints"
            )
        return world_secret.derived(f"{self._address}/{self.world}")

    def address(self) -> str:
        return self._address

    def host(self, serve: Serve, own_address: str) -> Server | None:
        with _alone(self._address) as alone:
            return self._host(serve) if alone else None

    def _host(self, serve: Serve) -> Server | None:
        for host in self._hosts:
            try:
                _check_free(f"{_bracketed(host)}:{self._port}")
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    continue
                if error.errno == errno.EADDRINUSE:
                    # Not at another address of this name: there would be two of it.
                    return None
                raise
            try:
                return serve(f"{_bracketed(host)}:{self._port}")
            except OSError:
                return None  # somebody was faster
        raise OSError(errno.EADDRNOTAVAIL, f"{self._hosts[0]} is no address of this machine")


class _File(Meeting):
    """A file that tells the address of whoever keeps the directory."""

    def __init__(self, path: Path) -> None:
        if not path.is_absolute():
            raise ValueError(f"file://{path} is no URL of a file: write file:///PATH")
        self._path = path
        with self._opened() as file:
            told = self._read(file)
            self.secret = world_secret.configured() or told.get("secret") or secrets.token_hex(32)
            if not world_secret.configured() and not told.get("secret"):
                self._check_private(file)
                self._write(file, {**told, "secret": self.secret})

    def address(self) -> str:
        with self._opened() as file:
            return str(self._read(file).get("directory", ""))

    def host(self, serve: Serve, own_address: str) -> Server | None:
        with self._opened() as file:
            told = self._read(file)
            if told.get("directory") and answers(told["directory"]):
                return None
            try:
                server = serve(f"{own_address.rpartition(':')[0]}:0")
            except OSError:
                # Others reach it by an address that is not of this machine, as in containers.
                server = serve("0.0.0.0:0")
            self._write(file, {**told, "directory": f"{own_address.rpartition(':')[0]}:{server.port}"})
            return server

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Opens the file, made if it is not there, for one process at a time."""
        with open(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _read(self, file: Any) -> dict[str, Any]:
        text = file.read()
        try:
            told = json.loads(text) if text.strip() else {}
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise RuntimeError(f"{self._path} holds something else already: name another file")
        return told

    def _write(self, file: Any, told: dict[str, Any]) -> None:
        file.seek(0)
        file.truncate()
        json.dump(told, file)
        file.flush()

    def _check_private(self, file: Any) -> None:
        status = os.fstat(file.fileno())
        if status.st_uid != os.getuid():
            raise RuntimeError(
                f"{self._path} belongs to somebody else, so no secret can be kept in it: set {SECRET}, or name a file "
                "of your own"
            )
        os.fchmod(file.fileno(), 0o600)


def _environment(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ValueError(f"init_method is env://, but {name} is not set: where do the workers of this world meet?")
    return value


def _resolved(host: str) -> list[str]:
    """Returns the addresses of a host in the same order everywhere, those of IPv4 first."""
    if host == "localhost":
        return [_LOOPBACK]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"{host} has no address: {error}") from None
    found.sort(key=lambda each: (each[0] != socket.AF_INET, str(each[4][0])))
    return list(dict.fromkeys(str(each[4][0]).partition("%")[0] for each in found))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextmanager
def _alone(address: str) -> Iterator[bool]:
    """Tells whether this is the only process of the machine that tries to listen at an address.

    Several may want to take over at once, and gRPC prints an error for each that comes too late.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            if sys.platform == "linux":
                # A name that is there as long as the socket; of the same network as the address.
                lock.bind(f"\0tensorcall-directory-{address}")
        except OSError:
            yield False
        else:
            yield True


def _check_free(address: str) -> None:
    """Returns if this process could listen at an address, HOST:PORT.

    Raises:
        OSError: it could not.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As gRPC does: connections that have ended do not keep the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, int(port)))


def answers(address: str) -> bool:
    """Tells whether somebody listens at an address, HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
