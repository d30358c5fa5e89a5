"""DirectoryService over gRPC: decodes, asks the table, encodes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message

from tensorcall.server.core import Core
from tensorcall.server.directory import Directory
from tensorcall.server.gate import Gate
from tensorcall.server.grpc_methods import Failures, GrpcExecutor, generated, on, parsed
from tensorcall.server.members import Change, Kind, Member, News, Version
from tensorcall.server.pool import Pool
from tensorcall.server.sweeper import Sweeper
from tensorcall.v1 import directory_service_pb2 as pb
from tensorcall.wire.errors import BadPayload, Overloaded

SERVICE = pb.DESCRIPTOR.services_by_name["DirectoryService"].full_name

_THREADS = 64
# A watcher holds no thread, but costs some memory.
_MAX_WATCHERS = 10_000
_RETRY_SECONDS = 1.0
_KINDS: dict[Kind, pb.MembershipChangeKind.ValueType] = {
    "joined": pb.MEMBERSHIP_CHANGE_KIND_JOINED,
    "left": pb.MEMBERSHIP_CHANGE_KIND_LEFT,
    "lapsed": pb.MEMBERSHIP_CHANGE_KIND_LAPSED,
    "moved": pb.MEMBERSHIP_CHANGE_KIND_MOVED,
}

Send = Callable[[Any], None]


class DirectoryServicer(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """The six methods. Who watches holds no thread while there is nothing to tell."""

    def __init__(self, core: Core, directory: Directory) -> None:
        self._directory = directory
        self._gate = Gate(core.config.secret)
        self._failures = Failures(core)
        # Apart from all others: who can't renew its lease is taken for dead.
        self._pool = Pool(_THREADS, _THREADS, 0)
        # A slow reader holds a thread while it is told something.
        self._telling = Pool(_THREADS, _THREADS, 0)
        self._sweeper = Sweeper(directory.expire, self._pool, directory.lease_seconds)
        self._watches: set[_Watch] = set()
        self._closed = False
        threads = GrpcExecutor(self._pool)
        quick: dict[str, tuple[Callable[[Any], Message], type[Message]]] = {
            "Join": (self.join, pb.JoinRequest),
            "Renew": (self.renew, pb.RenewRequest),
            "Leave": (self.leave, pb.LeaveRequest),
            "LookUp": (self.look_up, pb.LookUpRequest),
            "ListMembers": (self.list_members, pb.ListMembersRequest),
        }
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: generated(self._failures, method, request, threads) for name, (method, request) in quick.items()
        }
        methods["WatchMembers"] = grpc.unary_stream_rpc_method_handler(
            on(threads, self.watch_members, non_blocking=True)
        )
        self._methods = {f"/{SERVICE}/{name}": method for name, method in methods.items()}
        self._stranger: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            on(threads, self._failures.turn_away)
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Picks the method; runs on gRPC's one polling thread, so it must be quick."""
        handler = self._methods.get(handler_call_details.method)
        if handler is not None and not self._gate.lets_in(handler_call_details.invocation_metadata):
            return self._stranger
        return handler

    def begin(self) -> None:
        """Tells that there are members already."""
        self._sweeper.arm()

    def close(self) -> None:
        """Ends all watches, so that who watches looks for another directory, and the timer."""
        self._closed = True
        self._sweeper.close()
        for watch in list(self._watches):
            watch.end()

    # --- members ---

    def join(self, request: pb.JoinRequest) -> pb.JoinResponse:
        """DirectoryService.Join."""
        worker_id = request.worker_id if request.HasField("worker_id") else None
        member, members, version = self._directory.join(
            request.world, request.name, request.address, request.incarnation, worker_id
        )
        self._sweeper.arm()
        return pb.JoinResponse(
            member=_member(member), lease=self._lease(), members=map(_member, members), version=_version(version)
        )

    def renew(self, request: pb.RenewRequest) -> pb.RenewResponse:
        """DirectoryService.Renew."""
        self._directory.renew(request.world, request.name, request.incarnation)
        return pb.RenewResponse(lease=self._lease())

    def leave(self, request: pb.LeaveRequest) -> pb.LeaveResponse:
        """DirectoryService.Leave."""
        self._directory.leave(request.world, request.name, request.incarnation)
        return pb.LeaveResponse()

    def look_up(self, request: pb.LookUpRequest) -> pb.LookUpResponse:
        """DirectoryService.LookUp."""
        which = request.WhichOneof("worker")
        if which is None:
            raise BadPayload("the request does not say which worker: set name or worker_id")
        return pb.LookUpResponse(member=_member(self._directory.look_up(request.world, getattr(request, which))))

    def list_members(self, request: pb.ListMembersRequest) -> pb.ListMembersResponse:
        """DirectoryService.ListMembers."""
        members, version = self._directory.members(request.world)
        return pb.ListMembersResponse(members=map(_member, members), version=_version(version))

    def _lease(self) -> duration_pb2.Duration:
        lease = duration_pb2.Duration()
        lease.FromNanoseconds(round(self._directory.lease_seconds * 1e9))
        return lease

    # --- watchers ---

    def watch_members(self, message: bytes, context: grpc.ServicerContext, send: Send) -> None:
        """DirectoryService.WatchMembers."""
        try:
            request = parsed(pb.WatchMembersRequest, message)
            if len(self._watches) >= _MAX_WATCHERS:
                raise Overloaded(f"{_MAX_WATCHERS:,} are watching already", retry_after=_RETRY_SECONDS)
            after = (request.after.directory, request.after.number) if request.HasField("after") else None
            watch = _Watch(self._directory, request.world, after, send, self._telling)
            call_off = self._directory.watch(request.world, watch.wake)
        except Exception as error:
            self._failures.end(context, send, error)
            return
        self._watches.add(watch)

        def gone() -> None:
            call_off()
            watch.forget()
            self._watches.discard(watch)

        if not context.add_callback(gone):
            gone()
            return
        watch.wake()
        if self._closed:
            watch.end()


class _Watch:
    """Tells one watcher what it has not heard of yet, on one thread at a time; it keeps no queue of its own."""

    def __init__(self, directory: Directory, world: str, after: Version | None, send: Send, pool: Pool) -> None:
        self._directory = directory
        self._world = world
        self._after = after
        self._send = send
        self._pool = pool
        self._lock = threading.Lock()
        self._telling = False
        self._woken = False
        self._ending = False
        self._over = False
        self._told_once = False

    def wake(self) -> None:
        """Tells that there may be news."""
        with self._lock:
            self._woken = True
            if self._telling or self._over:
                return
            self._telling = True
        self._pool.submit_always(self._tell)

    def end(self) -> None:
        """Ends the stream when everything is told."""
        with self._lock:
            self._ending = True
        self.wake()

    def forget(self) -> None:
        """Tells that the watcher is gone."""
        with self._lock:
            self._over = True

    def _tell(self) -> None:
        while True:
            with self._lock:
                if self._over or not (self._woken or self._ending):
                    self._telling = False
                    return
                self._woken = False
                last = self._ending
            news = self._directory.news(self._world, self._after)
            self._after = news.version
            if news.changes or news.everyone is not None or not self._told_once:
                self._told_once = True
                self._send(_news(news).SerializeToString())
            if last:
                self.forget()
                self._send(None)


def _member(member: Member) -> pb.Member:
    return pb.Member(
        name=member.name, worker_id=member.worker_id, address=member.address, incarnation=member.incarnation
    )


def _version(version: Version) -> pb.MembershipVersion:
    return pb.MembershipVersion(directory=version[0], number=version[1])


def _change(change: Change) -> pb.MembershipChange:
    return pb.MembershipChange(kind=_KINDS[change.kind], member=_member(change.member))


def _news(news: News) -> pb.WatchMembersResponse:
    everyone = None if news.everyone is None else pb.MemberList(members=map(_member, news.everyone))
    return pb.WatchMembersResponse(
        everyone=everyone, changes=map(_change, news.changes), version=_version(news.version)
    )
