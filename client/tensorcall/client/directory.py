"""Asks a directory who is there. `membership` makes this process a worker and keeps it one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import grpc

from tensorcall.client.carrier import closed_error, from_rpc_error
from tensorcall.v1 import directory_service_pb2 as pb
from tensorcall.v1 import directory_service_pb2_grpc
from tensorcall.wire.errors import TensorcallError

Kind = Literal["joined", "left", "lapsed", "moved"]

_TIMEOUT = 5.0
_KINDS: dict[int, Kind] = {
    pb.MEMBERSHIP_CHANGE_KIND_JOINED: "joined",
    pb.MEMBERSHIP_CHANGE_KIND_LEFT: "left",
    pb.MEMBERSHIP_CHANGE_KIND_LAPSED: "lapsed",
    pb.MEMBERSHIP_CHANGE_KIND_MOVED: "moved",
}
_OPTIONS = [
    # A directory may come and go at its address: it is found soon, whatever became of other channels to it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", -1),
    # One whose machine went away is noticed; servers allow pings this often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_retries", 0),
]


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker of a world."""

    name: str
    """Unique among the live workers of its world."""

    id: int
    """Unique likewise."""

    address: str
    """Where it is reached."""

    incarnation: int
    """Tells one start of its process from the next."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a worker."""

    kind: Kind
    """It joined; it left; its lease lapsed, so it probably died; it is reached elsewhere from now on."""

    worker: Worker
    """Which one; with the new address if it moved."""


Version = pb.MembershipVersion


@dataclass(frozen=True, slots=True)
class Joined:
    """What a worker is told when it has joined."""

    worker: Worker
    """Itself, as others see it."""

    lease_seconds: float
    """For how long it is a member unless it renews that."""

    members: tuple[Worker, ...]
    """Everybody who is there."""

    version: Version
    """The version of that list, to watch from."""


@dataclass(frozen=True, slots=True)
class News:
    """What a watcher is told."""

    changes: tuple[Change, ...]
    """What has changed, in order."""

    everyone: tuple[Worker, ...] | None
    """Or the whole list, if what has changed is not known any more."""

    version: Version
    """To watch on from."""


class DirectoryClient:
    """The methods of a directory, for one world. Safe from any thread."""

    def __init__(self, address: str, *, world: str = "", token: str | None = None, timeout: float = _TIMEOUT) -> None:
        """Prepares a client; nothing is sent.

        Args:
            address: where the directory is, HOST:PORT or unix:PATH.
            world: the world; a directory may keep several.
            token: the secret of the directory, if it has one.
            timeout: how many seconds an answer may take.
        """
        self.address = address
        self.world = world
        self._timeout = timeout
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = directory_service_pb2_grpc.DirectoryServiceStub(self._channel)
        self._closed = False

    def join(self, name: str, address: str, incarnation: int, worker_id: int | None = None) -> Joined:
        """Makes a worker a member, or renews that.

        Args:
            name: its name.
            address: where others reach it.
            incarnation: tells this start of its process from the next; a random number, not 0.
            worker_id: the id that it wants; None: any.

        Raises:
            NameTaken: a live worker has the name or the id.
            TensorcallError: it failed.
        """
        request = pb.JoinRequest(
            world=self.world, name=name, address=address, incarnation=incarnation, worker_id=worker_id
        )
        told = self._ask(self._stub.Join, request)
        return Joined(_worker(told.member), _seconds(told.lease), tuple(map(_worker, told.members)), told.version)

    def renew(self, name: str, incarnation: int) -> float:
        """Renews a membership; returns for how many seconds.

        Raises:
            MembershipLapsed: there is none: join again.
            TensorcallError: it failed.
        """
        told = self._ask(self._stub.Renew, pb.RenewRequest(world=self.world, name=name, incarnation=incarnation))
        return _seconds(told.lease)

    def leave(self, name: str, incarnation: int) -> None:
        """Ends a membership, if there is one.

        Raises:
            TensorcallError: it failed.
        """
        self._ask(self._stub.Leave, pb.LeaveRequest(world=self.world, name=name, incarnation=incarnation))

    def lookup(self, who: str | int) -> Worker:
        """Finds a worker by its name or its id.

        Raises:
            WorkerUnknown: there is none.
            TensorcallError: it failed.
        """
        request = pb.LookUpRequest(world=self.world)
        if isinstance(who, str):
            request.name = who
        else:
            request.worker_id = who
        return _worker(self._ask(self._stub.LookUp, request).member)

    def members(self) -> tuple[Worker, ...]:
        """Returns everybody who is there, in the order in which they joined.

        Raises:
            TensorcallError: it failed.
        """
        return tuple(map(_worker, self._ask(self._stub.ListMembers, pb.ListMembersRequest(world=self.world)).members))

    def watch(self, after: Version | None = None) -> Watch:
        """Returns the news as they come, the first at once; without `after` that is the whole list."""
        try:
            request = pb.WatchMembersRequest(world=self.world, after=after)
            return Watch(self._stub.WatchMembers(request, metadata=self._metadata), self.address)
        except ValueError:
            raise closed_error() from None

    def close(self) -> None:
        """Ends the connection, and with it all watches. Idempotent."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> DirectoryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: Callable[..., Any], request: Any) -> Any:
        error: TensorcallError
        try:
            return method(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as raised:
            # All methods are idempotent, so it is all one when the directory went away.
            error = closed_error() if self._closed else from_rpc_error(raised, self.address, connected=False)
        except ValueError:
            if not self._closed:
                raise
            error = closed_error()
        try:
            raise error
        finally:
            del error  # this frame is part of its traceback


class Watch(Iterator[News]):
    """News as they come. Iterating blocks; it ends when the directory ends, and raises when it can't be reached."""

    def __init__(self, call: Any, address: str) -> None:
        self._call = call
        self._address = address
        self._cancelled = False

    def __next__(self) -> News:
        error: TensorcallError
        try:
            return _news(next(self._call))
        except grpc.RpcError as raised:
            if self._cancelled:
                raise StopIteration from None
            error = from_rpc_error(raised, self._address, connected=False)
        try:
            raise error
        finally:
            del error  # this frame is part of its traceback

    def cancel(self) -> None:
        """Ends it, from any thread. Idempotent."""
        self._cancelled = True
        self._call.cancel()


def _worker(member: pb.Member) -> Worker:
    return Worker(member.name, member.worker_id, member.address, member.incarnation)


def _news(told: pb.WatchMembersResponse) -> News:
    changes = (Change(_KINDS[each.kind], _worker(each.member)) for each in told.changes if each.kind in _KINDS)
    everyone = tuple(map(_worker, told.everyone.members)) if told.HasField("everyone") else None
    return News(tuple(changes), everyone, told.version)


def _seconds(duration: Any) -> float:
    return float(duration.ToNanoseconds() / 1e9)
