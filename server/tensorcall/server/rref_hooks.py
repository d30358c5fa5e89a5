"""What the handler asks RRefs to do: the owner's and the user's way to a type, and proxies."""

from __future__ import annotations

from typing import Any

from tensorcall.client.rref import RRef
from tensorcall.server.handler import Handler, RRefHooks
from tensorcall.wire.errors import HandlerCleanedUp


def _type_on_owner(rref: RRef, *, blocking: bool = True) -> Any:
    return rref._get_type(blocking=blocking)


def _type_on_user(rref: RRef, *, timeout: float | None = None, blocking: bool = True) -> Any:
    return rref._get_type(timeout=timeout, blocking=blocking)


HOOKS = RRefHooks(
    type_on_owner=_type_on_owner,
    type_on_user=_type_on_user,
    rpc_sync=lambda rref, timeout: rref.rpc_sync(timeout),
    rpc_async=lambda rref, timeout: rref.rpc_async(timeout),
    remote=lambda rref, timeout: rref.remote(timeout),
)


def install() -> None:
    """Gives the process' handler these hooks, unless it has others or was cleaned up."""
    handler = Handler.get_instance()
    try:
        if handler.rref_hooks is None:
            handler.rref_hooks = HOOKS
    except HandlerCleanedUp:
        pass
