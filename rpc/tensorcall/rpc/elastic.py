"""Worlds without ranks: workers join and leave at any time, through a directory that one of them keeps.

Whoever comes first to the place where the workers meet keeps the directory there. If it leaves or dies, the others go
on with those whom they know; one of them that can listen at that place takes over, and all come to it by themselves.
Until then nobody new can join.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable

from tensorcall.client.directory import Change, DirectoryClient, Worker
from tensorcall.client.membership import Membership as _Membership
from tensorcall.rpc import meeting
from tensorcall.rpc.meeting import Meeting
from tensorcall.rpc.world import Member, World
from tensorcall.rpc.world_secret import ADVICE
from tensorcall.server import members
from tensorcall.server.config import ServerConfig
from tensorcall.server.directory import LEASE_SECONDS
from tensorcall.server.server import Server
from tensorcall.wire.errors import (
    DeadlineExceeded,
    NameTaken,
    NetworkError,
    NotImplementedByPeer,
    ServiceError,
    TensorcallError,
    Unauthenticated,
    Unreachable,
    WorkerUnknown,
)

_log = logging.getLogger(__name__)

_JOIN_SECONDS = 60.0
_RETRY_SECONDS = (0.05, 0.3)
# Those who watch are told that it ends; they do not need long.
_HOST_GRACE = 1.0


def join(
    name: str,
    init_method: str | Meeting,
    address: str,
    incarnation: int,
    *,
    worker_id: int | None = None,
    timeout: float = _JOIN_SECONDS,
    lease_seconds: float = LEASE_SECONDS,
) -> Membership:
    """Makes this process a worker of the world that meets at a place.

    Args:
        name: its name.
        init_method: the place, a URL as `meeting.find` takes it, or what that returned.
        address: where others reach this worker, HOST:PORT.
        incarnation: tells this start of the process from the next; a random number, not 0.
        worker_id: the id that it wants; None: any.
        timeout: how many seconds to wait for a directory; 0: for ever.
        lease_seconds: if this worker keeps the directory: how long it waits for those who died.

    Raises:
        NameTaken: a live worker has the name or the id.
        Unauthenticated: the world has another secret.
        Unreachable: there was no directory in that time.
        TensorcallError: it failed.
    """
    place = meeting.find(init_method) if isinstance(init_method, str) else init_method
    return Membership(place, name, address, incarnation, worker_id, timeout, lease_seconds)


class Membership:
    """One worker's place in an elastic world. Safe from any thread."""

    def __init__(
        self,
        place: Meeting,
        name: str,
        address: str,
        incarnation: int,
        worker_id: int | None,
        timeout: float,
        lease_seconds: float,
    ) -> None:
        """Joins; see `join`."""
        self._place = place
        self._address = address
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._host: Server | None = None
        self._left = False
        # Why this worker can't keep the directory, for messages.
        self._why_not = ""
        self._joined: _Membership | None = None
        try:
            self._joined = self._first_join(name, incarnation, worker_id, timeout)
        except BaseException:
            self._stop_hosting()
            raise

    @property
    def worker(self) -> Worker:
        """This worker, as the others see it."""
        return self._member.worker

    @property
    def hosting(self) -> bool:
        """Whether this worker keeps the directory."""
        return self._host is not None

    def lookup(self, who: str | int) -> Worker:
        """Finds a worker by its name or its id.

        Raises:
            WorkerUnknown: there is none, as far as is known here.
        """
        return self._member.lookup(who)

    def members(self) -> tuple[Worker, ...]:
        """Returns everybody who is there as far as is known here, this worker included."""
        return self._member.members()

    def on_change(self, callback: Callable[[Change], object]) -> Callable[[], None]:
        """Has the callback called with each change of others; see `tensorcall.client.membership`."""
        return self._member.on_change(callback)

    def leave(self) -> None:
        """Leaves the world, and the directory to whoever takes it. Idempotent."""
        with self._lock:
            self._left = True
        if self._joined is not None:
            self._joined.leave()
        self._stop_hosting()

    @property
    def _member(self) -> _Membership:
        assert self._joined is not None
        return self._joined

    def _first_join(self, name: str, incarnation: int, worker_id: int | None, timeout: float) -> _Membership:
        end = time.monotonic() + timeout if timeout else None
        remaining = 0.0
        while True:
            self._try_to_host(())
            trouble: Exception | None = None
            address = self._place.address()
            if address:
                client = self._client(address)
                try:
                    return _Membership(
                        client, name, self._address, incarnation, worker_id, unreachable=self._no_directory
                    )
                except (NetworkError, DeadlineExceeded, ServiceError) as error:
                    trouble = error
                    client.close()
                except NameTaken as error:
                    client.close()
                    remaining = self._check_dead(error, remaining)
                    trouble = error
                except BaseException as error:
                    client.close()
                    raise self._advised(error, address) from None
            if end is not None and time.monotonic() >= end:
                if isinstance(trouble, NameTaken):
                    raise trouble
                raise Unreachable(
                    f"no directory of a world was found at {address or 'that place'} within {timeout:g} s"
                    f"{self._why_not}; {trouble}"
                )
            time.sleep(random.uniform(*_RETRY_SECONDS))

    def _check_dead(self, error: NameTaken, before: float) -> float:
        """Returns if whoever has the name seems to have died; its lease will lapse, and the name be free.

        Args:
            error: what the directory said.
            before: for how many seconds the lease still held when this was asked before; 0: it was not.

        Returns:
            For how many it holds now.

        Raises:
            NameTaken: it lives: somebody listens at its address, or it has renewed its lease meanwhile.
        """
        remaining = float(error.metadata.get("lease_seconds", "0"))
        address = error.metadata.get("address", "")
        if (before and remaining > before) or (address != self._address and meeting.answers(address)):
            raise error
        if not before:
            _log.info("waits for the lease of an earlier worker", extra={"address": address, "seconds": remaining})
        return remaining

    def _advised(self, error: BaseException, address: str) -> BaseException:
        if isinstance(error, Unauthenticated):
            return Unauthenticated(f"the world at {address} has another secret than this worker: {ADVICE}")
        if isinstance(error, NotImplementedByPeer):
            return NotImplementedByPeer(f"what listens at {address} is no directory: choose another port")
        return error

    def _client(self, address: str) -> DirectoryClient:
        return DirectoryClient(address, world=self._place.world, token=self._place.secret)

    # --- keeping the directory ---

    def _no_directory(self) -> DirectoryClient | None:
        """Takes over if it can; returns the way to whoever keeps the directory if that is elsewhere by now."""
        known = self._joined.members() if self._joined is not None else ()
        self._try_to_host(known)
        address = self._place.address()
        return self._client(address) if address != self._member.directory else None

    def _try_to_host(self, known: tuple[Worker, ...]) -> None:
        with self._lock:
            if self._left or self._host is not None:
                return
            try:
                self._host = self._place.host(lambda bind: self._serve(bind, known), self._address)
            except (OSError, RuntimeError) as error:
                self._why_not = f"; this worker can't keep one there: {error}"
                return
            if self._host is not None:
                _log.info("keeps the directory", extra={"address": self._host.address, "known": len(known)})

    def _serve(self, bind: str, known: tuple[Worker, ...]) -> Server:
        server = Server([], config=ServerConfig(bind=bind, secret=self._place.secret, worker="directory"))
        directory = server.host_directory(self._lease_seconds)
        # They stay members, unless they have died; nobody can take their names meanwhile.
        directory.adopt(
            self._place.world,
            (members.Member(worker.name, worker.id, worker.address, worker.incarnation) for worker in known),
        )
        server.start()
        return server

    def _stop_hosting(self) -> None:
        with self._lock:
            host, self._host = self._host, None
        if host is not None:
            host.stop(_HOST_GRACE)


class ElasticWorld(World):
    """An elastic world, as this process' agent knows it."""

    is_static = False

    def __init__(self, init_method: str, timeout: float) -> None:
        """Finds the place where the world meets, and its secret.

        Args:
            init_method: the place; see `meeting.find`.
            timeout: how many seconds to wait for a directory; 0: for ever.

        Raises:
            RuntimeError: there must be a secret, and is none.
            ValueError: the place is none.
        """
        self._place = meeting.find(init_method)
        self._timeout = timeout
        self.secret = self._place.secret
        # Made up here, since the worker is somebody before it has joined. So large that no two are ever the same, also
        # where a directory does not know of all others.
        self.worker_id = (1 << 32) + secrets.randbelow((1 << 48) - (1 << 32))
        self._membership: Membership | None = None

    def join(self, me: Member) -> None:
        """Makes this worker known."""
        try:
            self._membership = join(
                me.name, self._place, me.address, me.incarnation, worker_id=me.id, timeout=self._timeout
            )
        except NameTaken as error:
            raise RuntimeError(f"RPC worker name {me.name} is not unique: {error}") from None
        except TensorcallError as error:
            raise RuntimeError(str(error)) from error

    def members(self) -> list[Member]:
        """Returns who is in the world now, this worker too, by id."""
        if self._membership is None:
            return []
        return sorted(map(_member, self._membership.members()), key=lambda member: member.id)

    def find(self, key: str | int) -> Member | None:
        """Finds a worker by its name or id; asks the directory for those not known yet."""
        if self._membership is None:
            return None
        try:
            return _member(self._membership.lookup(key))
        except WorkerUnknown:
            return None

    def on_change(self, callback: Callable[[Change], object]) -> Callable[[], None]:
        """Has the callback called with each change of others from now on; returns what calls that off."""
        if self._membership is None:
            raise RuntimeError("this worker has not joined its world yet")
        return self._membership.on_change(callback)

    def leave(self) -> None:
        """Leaves the world. Idempotent."""
        if self._membership is not None:
            self._membership.leave()


def _member(worker: Worker) -> Member:
    return Member(worker.name, worker.id, worker.address, worker.incarnation)
