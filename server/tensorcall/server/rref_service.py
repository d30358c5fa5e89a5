"""RRefService over gRPC: decodes, asks the table, encodes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from tensorcall.server.core import Core
from tensorcall.server.gate import Gate
from tensorcall.server.grpc_methods import Failures, GrpcExecutor, generated, on, parsed
from tensorcall.server.owned import Owned
from tensorcall.server.pool import Pool
from tensorcall.server.rrefs import Info
from tensorcall.v1 import rref_pb2
from tensorcall.v1 import rref_service_pb2 as pb
from tensorcall.wire.calls import WANT_VALUE, Request, Target
from tensorcall.wire.errors import TooLarge
from tensorcall.wire.protowire import nested, tag
from tensorcall.wire.rrefs import RRefId

SERVICE = pb.DESCRIPTOR.services_by_name["RRefService"].full_name

_VALUE = tag(1)  # of FetchResponse
_THREADS = 64
_DEFAULT_LIMIT, _MAX_LIMIT = 1000, 100_000
_MAX_RELEASED = 100_000
# Of a client's id so many characters are told to others: who knows all of it may let go of what the client holds.
_SHOWN = 16

Send = Callable[[Any], None]


class RRefServicer(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """The eight methods. The two that may have to wait for a value hold no thread meanwhile."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._table = core.rrefs
        self._gate = Gate(core.config.secret)
        self._failures = Failures(core)
        # Apart from those who ask for listings: a client whose lease is not renewed in time loses what it holds.
        threads = GrpcExecutor(Pool(_THREADS, _THREADS, 0))
        quick: dict[str, tuple[Callable[[Any], Message], type[Message]]] = {
            "Fork": (self.fork, pb.ForkRequest),
            "Release": (self.release, pb.ReleaseRequest),
            "GrantLease": (self.grant_lease, pb.GrantLeaseRequest),
            "KeepAlive": (self.keep_alive, pb.KeepAliveRequest),
            "RevokeLease": (self.revoke_lease, pb.RevokeLeaseRequest),
            "ListRRefs": (self.list_rrefs, pb.ListRRefsRequest),
        }
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: generated(self._failures, method, request, threads) for name, (method, request) in quick.items()
        }
        # To the caller a stream of one message is no different from one message; to gRPC the thread is free meanwhile.
        methods["Fetch"] = grpc.unary_stream_rpc_method_handler(on(threads, self.fetch, non_blocking=True))
        methods["GetType"] = grpc.unary_stream_rpc_method_handler(on(threads, self.get_type, non_blocking=True))
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

    # --- what waits for a value ---

    def fetch(self, message: bytes, context: grpc.ServicerContext, send: Send) -> None:
        """RRefService.Fetch."""

        def answer(request: pb.FetchRequest) -> bytes:
            # As any call, so that there is one way to authorise, run and encode.
            target = Target(fetch=_rref_id(request.rref))
            call = Request(b"", target, [], "", WANT_VALUE, None, [], [], request.client_id, 0)
            core = self._core
            admitted = core.admit(call, self._failures.peer(context), None, stream=False)
            try:
                return b"".join(nested(_VALUE, core.payload(admitted).parts))
            finally:
                core.finish(admitted, "ok")

        self._when_done(pb.FetchRequest, message, context, send, answer)

    def get_type(self, message: bytes, context: grpc.ServicerContext, send: Send) -> None:
        """RRefService.GetType."""

        def answer(request: pb.GetTypeRequest) -> bytes:
            owned = self._table.get(_rref_id(request.rref))
            failure = owned.failure()
            if failure is not None:
                raise failure
            cls = type(owned.wait(0))
            return pb.GetTypeResponse(module=cls.__module__, name=cls.__qualname__).SerializeToString()

        self._when_done(pb.GetTypeRequest, message, context, send, answer)

    def _when_done(
        self,
        request_type: type[Any],
        message: bytes,
        context: grpc.ServicerContext,
        send: Send,
        answer: Callable[[Any], bytes],
    ) -> None:
        """Answers once there is a value. The call's deadline and its end are gRPC's business."""
        try:
            request = parsed(request_type, message)
            owned = self._table.get(_rref_id(request.rref))
            self._core.begin_awaiting()
        except Exception as error:
            self._failures.end(context, send, error)
            return
        # Acquired by whoever ends the waiting.
        once = threading.Lock()

        def reply(owned: Owned) -> None:
            # Keeps the value until it is encoded.
            try:
                send(answer(request))
            except Exception as error:
                self._failures.end(context, send, error)
            else:
                send(None)

        def done(owned: Owned) -> None:
            if once.acquire(blocking=False):
                self._core.end_awaiting()
                self._core.chores.submit_always(reply, owned)

        # The caller may go away first. gRPC keeps the callback as long as the call, so it holds no value.
        call_offs: list[Callable[[], None]] = []

        def gone() -> None:
            if once.acquire(blocking=False):
                self._core.end_awaiting()
                for call_off in call_offs:
                    call_off()
                call_offs.clear()

        if not context.add_callback(gone):
            gone()
            return
        call_offs.append(owned.on_done(done))
        if once.locked():
            # The caller may have gone before the value was told to call back.
            for call_off in call_offs:
                call_off()
            call_offs.clear()

    # --- what is done at once ---

    def fork(self, request: pb.ForkRequest) -> pb.ForkResponse:
        """RRefService.Fork."""
        self._table.fork(_rref_id(request.rref), request.client_id, request.number)
        return pb.ForkResponse()

    def release(self, request: pb.ReleaseRequest) -> pb.ReleaseResponse:
        """RRefService.Release."""
        count = len(request.numbers) + len(request.rrefs) + len(request.holds)
        if count > _MAX_RELEASED:
            # All others wait meanwhile.
            raise TooLarge(f"the request releases {count:,} at once, and may {_MAX_RELEASED:,}: send several")
        self._table.release(
            request.client_id,
            incarnation=request.incarnation,
            numbers=request.numbers,
            rrefs=[_rref_id(rref) for rref in request.rrefs],
            holds=request.holds,
            settled_below=request.settled_below,
        )
        return pb.ReleaseResponse()

    def grant_lease(self, request: pb.GrantLeaseRequest) -> pb.GrantLeaseResponse:
        """RRefService.GrantLease."""
        lease = self._table.grant(request.client_id)
        response = pb.GrantLeaseResponse(
            worker=self._table.worker, incarnation=self._table.incarnation, first_sequence=lease.first_sequence
        )
        response.duration.FromNanoseconds(int(self._table.leases.seconds * 1e9))
        return response

    def keep_alive(self, request: pb.KeepAliveRequest) -> pb.KeepAliveResponse:
        """RRefService.KeepAlive."""
        self._table.keep_alive(request.client_id, request.incarnation)
        response = pb.KeepAliveResponse()
        response.duration.FromNanoseconds(int(self._table.leases.seconds * 1e9))
        return response

    def revoke_lease(self, request: pb.RevokeLeaseRequest) -> pb.RevokeLeaseResponse:
        """RRefService.RevokeLease."""
        self._table.revoke(request.client_id)
        return pb.RevokeLeaseResponse()

    def list_rrefs(self, request: pb.ListRRefsRequest) -> pb.ListRRefsResponse:
        """RRefService.ListRRefs."""
        infos, total = self._table.infos(min(request.limit or _DEFAULT_LIMIT, _MAX_LIMIT))
        response = pb.ListRRefsResponse(total=total)
        for info in infos:
            _describe(response.rrefs.add(), info)
        return response


def _rref_id(message: rref_pb2.RRefId) -> RRefId:
    return RRefId(message.owner, message.incarnation, message.sequence, message.address)


def _describe(message: pb.RRefInfo, info: Info) -> None:
    name = info.rref_id
    message.rref.owner, message.rref.incarnation = name.owner, name.incarnation
    message.rref.sequence, message.rref.address = name.sequence, name.address
    message.type, message.bytes, message.made_by = info.type, info.nbytes, info.made_by
    message.age.FromNanoseconds(int(info.age * 1e9))
    for holder in info.holders:
        told = message.holders.add(client_id=_shown(holder.client_id), forks=holder.forks)
        told.lease_remaining.FromNanoseconds(int(holder.remaining * 1e9))


def _shown(client_id: str) -> str:
    return client_id if len(client_id) <= _SHOWN else client_id[:_SHOWN] + "…"
