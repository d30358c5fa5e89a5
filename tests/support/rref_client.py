"""A client of references as another language would write one: generated messages on one channel."""

from __future__ import annotations

import secrets
from typing import Any

import grpc
import pytest

from support.reference import object_of, rref_of, value_of
from tensorcall.v1 import handler_service_pb2 as handler_pb
from tensorcall.v1 import rref_service_pb2 as pb
from tensorcall.v1.handler_service_pb2_grpc import HandlerServiceStub
from tensorcall.v1.rref_pb2 import RRefId
from tensorcall.v1.rref_service_pb2_grpc import RRefServiceStub
from tensorcall.v1.value_pb2 import Payload, Value
from tensorcall.wire import errors, statuses


class RRefClient:
    """One client process."""

    def __init__(self, address: str, token: str = "") -> None:
        self.channel = grpc.insecure_channel(address)
        self.handler: Any = HandlerServiceStub(self.channel)
        self.rrefs: Any = RRefServiceStub(self.channel)
        self.id = secrets.token_hex(16)
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        self.lease = self.ask("GrantLease", pb.GrantLeaseRequest(client_id=self.id))
        self._number = 0

    def __enter__(self) -> RRefClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("RevokeLease", pb.RevokeLeaseRequest(client_id=self.id))
        self.channel.close()

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def ask(self, method: str, request: Any, timeout: float = 20) -> Any:
        """Calls a method of RRefService and raises what the service answers."""
        return told(lambda: getattr(self.rrefs, method)(request, timeout=timeout, metadata=self.metadata))

    def request(self, target: str | RRefId | tuple[RRefId, str], *args: Any, **fields: Any) -> handler_pb.CallRequest:
        """Makes a call: of a function, of a method of a value, or for the value itself."""
        request = handler_pb.CallRequest(client_id=self.id, **fields)
        if isinstance(target, str):
            request.function = target
        elif isinstance(target, tuple):
            request.method.rref.CopyFrom(target[0])
            request.method.name = target[1]
        else:
            request.fetch.CopyFrom(target)
        request.args.extend(Value(rref=arg) if isinstance(arg, RRefId) else value_of(arg) for arg in args)
        return request

    def call(self, target: Any, *args: Any, timeout: float = 20, **fields: Any) -> Any:
        """Calls and returns the result, or the reference to it."""
        request = self.request(target, *args, **fields)
        response = told(lambda: self.handler.Call(request, timeout=timeout, metadata=self.metadata))
        return response.rref if response.HasField("rref") else read(response.result)

    def start(self, target: Any, *args: Any, timeout: float = 20, **fields: Any) -> Any:
        """Calls and returns gRPC's future."""
        return self.handler.Call.future(self.request(target, *args, **fields), timeout=timeout, metadata=self.metadata)

    def remote(self, target: Any, *args: Any, number: int | None = None) -> RRefId:
        """Has a value made; returns the reference to it."""
        number = self.next_number() if number is None else number
        return self.call(target, *args, number=number, want=handler_pb.RESULT_FORM_RREF)

    def fork(self, rref: RRefId, number: int | None = None) -> int:
        number = self.next_number() if number is None else number
        self.ask("Fork", pb.ForkRequest(rref=rref, client_id=self.id, number=number))
        return number

    def release(self, **what: Any) -> None:
        self.ask("Release", pb.ReleaseRequest(client_id=self.id, **what))

    def listed(self, rref: RRefId) -> pb.RRefInfo | None:
        """What the list tells of a value; None if it is not on it."""
        listed = self.ask("ListRRefs", pb.ListRRefsRequest(limit=10_000)).rrefs
        return next((info for info in listed if rref_of(info.rref) == rref_of(rref)), None)


def read(payload: Payload) -> Any:
    """What a payload without tensors holds; references stay messages' names."""
    return object_of(payload.value)


def told(call: Any) -> Any:
    """Makes a gRPC call and raises what the service answers."""
    try:
        return call()
    except grpc.RpcError as raised:
        error: Any = raised
    details = dict(error.trailing_metadata() or ()).get(statuses.DETAILS_KEY)
    raise statuses.from_grpc(error.code().value[0], error.details() or "", details, connected=True)


def refused(reason: str, match: str = "") -> Any:
    """Expects an error of this reason."""
    cls = statuses.REASONS[reason][0]
    assert issubclass(cls, errors.TensorcallError)
    return pytest.raises(cls, match=match or None)
