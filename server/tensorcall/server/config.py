"""What an operator may set, with its defaults."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from tensorcall.wire.limits import GIB, MAX_MESSAGE_BYTES, MIB

_MAX_SECONDS = 365 * 24 * 3600.0


def _memory_bytes() -> int:
    """Returns the machine's memory, or what the container may use of it if that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            total = min(total, int(file.read()))
    except (OSError, ValueError):
        pass  # no control group, or its limit is "max"
    return total


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of a server. All of them have defaults that are safe on a laptop and sensible in a container."""

    bind: str = "127.0.0.1:50051"
    """Where to listen: HOST:PORT, or unix:PATH. Port 0 picks a free one."""

    worker: str = ""
    """How errors and logs name this server; the host's name if empty."""

    threads: int = min(32, (os.cpu_count() or 1) + 14)
    """How many functions may run at once on threads. Threads that wait for calls of their own do not count."""

    max_threads: int = 512
    """How many threads there may be, the waiting ones included."""

    max_queue: int = 4096
    """How many calls may wait for a thread, and how many coroutines may run, before further ones get OVERLOADED."""

    max_sessions: int = 1024
    """How many sessions may be open at once. Each one has a thread that reads."""

    max_message_bytes: int = MAX_MESSAGE_BYTES
    """The largest message that is accepted, in bytes, at least 8 MiB. Tensors in chunks may be larger."""

    max_gathering_bytes: int = max(1 * GIB, _memory_bytes() // 10 * 8)
    """How many bytes tensors may take in all whose chunks are still coming."""

    hello_seconds: float = 10.0
    """How long a session may be open without its hello, in seconds."""

    allow_pickle: bool = False
    """Whether peers may send pickled Python, which runs whatever they like: loopback ones, and with `secret` all."""

    secret: str = field(default="", repr=False)
    """If set, callers must show it, as `authorization: Bearer SECRET`. They are trusted then wherever they are."""

    lease_seconds: float = 60.0
    """How long references of a client are kept that does not renew its lease."""

    max_clients: int = 10_000
    """How many clients may hold references at once."""

    max_rrefs_per_client: int = 100_000
    """How many references one client may hold."""

    max_rref_bytes_per_client: int = max(1 * GIB, _memory_bytes() // 10 * 8)
    """How many bytes the values may take in all that one client has made or holds."""

    advertise: str = ""
    """Where others reach this server, HOST:PORT; references tell it. If empty, `bind` where that is one address."""

    rref_peers: tuple[str, ...] = ()
    """Where references in arguments may point beside loopback addresses: HOST or HOST:PORT, with * for any part."""

    tracebacks: Literal["loopback", "always", "never"] = "loopback"
    """Who may see the frames of exceptions."""

    grace: float = 30.0
    """How many seconds a drain waits for calls in flight before it cancels them."""

    def __post_init__(self) -> None:
        # A session's messages hold a batch of calls and a chunk, of up to 1 MiB each.
        if not 8 * MIB <= self.max_message_bytes <= MAX_MESSAGE_BYTES:
            raise ValueError(f"max_message_bytes is {self.max_message_bytes:,}: it must lie between 8 MiB and 1 GiB")
        for name in ("threads", "max_threads", "max_sessions", "max_clients", "max_rrefs_per_client"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("max_queue", "max_gathering_bytes", "max_rref_bytes_per_client", "grace"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it can't be negative")
        for name in ("hello_seconds", "lease_seconds"):
            if not 0 < getattr(self, name) < _MAX_SECONDS:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be more than 0 and less than a year")
        if any(ord(character) <= 32 or ord(character) >= 127 for character in self.secret):
            raise ValueError("the secret must be of visible ASCII characters: it travels in a header")
        if isinstance(self.rref_peers, str):
            raise TypeError("rref_peers is a tuple of addresses, not a str")
