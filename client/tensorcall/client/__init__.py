"""Calls functions that a tensorcall server exposes.

from tensorcall.client import connect

with connect("127.0.0.1:50051") as remote:
remote.call("mymodule.add", 1, 2)
"""

from tensorcall.client.aio import AsyncRemote, AsyncResultStream, connect_async
from tensorcall.client.async_rref import AsyncRRef
from tensorcall.client.futures import CallFuture
from tensorcall.client.options import CallOptions
from tensorcall.client.remote import Function, Remote, ResultStream, connect
from tensorcall.client.rref import RRef
from tensorcall.client.user_rref import RemoteClass
from tensorcall.wire.errors import RemoteError, TensorcallError
from tensorcall.wire.rrefs import RRefId

__all__ = [
    "AsyncRRef",
    "AsyncRemote",
    "AsyncResultStream",
    "CallFuture",
    "CallOptions",
    "Function",
    "RRef",
    "RRefId",
    "Remote",
    "RemoteClass",
    "RemoteError",
    "ResultStream",
    "TensorcallError",
    "connect",
    "connect_async",
]
