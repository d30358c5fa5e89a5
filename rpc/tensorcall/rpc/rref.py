"""References to values of other workers, and of this one: torch's PyRRef and RRef."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import torch

from tensorcall.rpc import internal
from tensorcall.rpc.constants import UNSET_RPC_TIMEOUT
from tensorcall.rpc.errors import RpcTimeout
from tensorcall.rpc.futures import RpcFuture, completed
from tensorcall.rpc.outgoing import Call
from tensorcall.rpc.rref_context import GloballyUniqueId, Handle, call_site
from tensorcall.rpc.rref_proxy import RRefProxy
from tensorcall.rpc.rref_types import TypeHint, of_value, script_type
from tensorcall.rpc.worker_info import WorkerInfo
from tensorcall.server.owner_rref import OwnerRRef
from tensorcall.wire import pickles
from tensorcall.wire.calls import Target
from tensorcall.wire.rrefs import RRefId

if TYPE_CHECKING:
    from tensorcall.rpc.agent import Agent
    from tensorcall.rpc.world import Member

_T = TypeVar("_T")


def _agent() -> Agent:
    # Late: the calls know references.
    from tensorcall.rpc import api

    agent: Agent = api._get_current_rpc_agent()
    return agent


class PyRRef:
    """A reference to a value that one worker owns.

    Args:
        value: of this worker.
        type_hint: what TorchScript takes it for; needed for a ScriptModule: its interface.

    Raises:
        RuntimeError: this process is no worker; or a ScriptModule has no hint.
    """

    _handle: Any
    _agent: Agent
    _id: GloballyUniqueId
    _fork_id: GloballyUniqueId
    # The call that makes the value, if this worker made it.
    _creation: RpcFuture
    _type_hint: TypeHint | None = None
    _type_future: Any = None
    _profiling_future: Any = None
    _deleted = False

    def __init__(self, value: Any, type_hint: Any = None) -> None:
        agent = _agent()
        if isinstance(value, torch.jit.ScriptModule) and type_hint is None:
            raise RuntimeError(
                "The RRef being created contains a ScriptModule, must provide its ModuleInterface type hint."
            )
        made_by = f"RRef(…) at {call_site()} on {agent.me.name}"
        self._become(agent, agent.server.core.own(value, made_by), agent.rrefs.new_id(), of_value(value, type_hint))
        self._creation = completed(None)

    def _become(self, agent: Agent, handle: Any, id: GloballyUniqueId, type_hint: TypeHint | None) -> None:
        self._agent = agent
        self._handle = handle
        self._id = id
        self._type_hint = type_hint
        if not handle.is_owner():
            self._fork_id = agent.rrefs.new_id()
            agent.rrefs.add_user(self)

    @classmethod
    def _of(cls, agent: Agent, handle: Any, id: GloballyUniqueId, type_hint: TypeHint | None = None) -> Any:
        """Makes a reference of a handle."""
        made = cls.__new__(cls)
        made._become(agent, handle, id, type_hint)
        made._creation = completed(None)
        return made

    # --- whose it is ---

    def is_owner(self) -> bool:
        """Tells whether this worker owns the value."""
        owns: bool = self._handle.is_owner()
        return owns

    def confirmed_by_owner(self) -> bool:
        """Tells whether the owner knows of this reference."""
        confirmed: bool = self._handle.confirmed_by_owner()
        return confirmed

    def owner(self) -> WorkerInfo:
        """Returns the worker that owns the value."""
        return self._agent.get_worker_info(self.owner_name())

    def owner_name(self) -> str:
        """Names the worker that owns the value."""
        name: str = self._handle.owner_name()
        return name

    # --- the value ---

    def to_here(self, timeout: float = UNSET_RPC_TIMEOUT) -> Any:
        """Returns a copy of the value, on its owner the value itself; waits until there is one.

        Args:
            timeout: how many seconds to wait; 0: for ever; -1: as `get_rpc_timeout` says.

        Raises:
            RuntimeError: the time ran out, the owner is gone, or the value was never made.
            Exception: what the function raised that was to make it.
        """
        if self.is_owner():
            return self.local_value()
        self._check_usable("to_here() on")
        if self._type_hint is not None and self._type_hint.is_module:
            raise RuntimeError(
                f"{self._described()} is an RRef to a ScriptModule. It can't be sent through RPC from owner, "
                f"{self.owner()}, to user, {self._agent.get_worker_info()}."
            )
        return self._fetch(timeout).wait()

    def _fetch(self, timeout: float) -> RpcFuture:
        agent = self._agent
        message = "PYTHON_RREF_FETCH_CALL" if self._type_hint is None else "SCRIPT_RREF_FETCH_CALL"
        call = Call(Target(fetch=self._handle.rref_id()), (), [self._handle], message)
        return agent.outgoing.submit(agent.member(self.owner_name()), call, agent.seconds(timeout), None)

    def local_value(self) -> Any:
        """Returns the value itself; waits until there is one. Only on its owner.

        Raises:
            RuntimeError: another worker owns it.
            Exception: what the function raised that was to make it.
        """
        if not self.is_owner():
            raise RuntimeError(
                f"For {self._described()}, can't call localValue() on user {self._agent.get_worker_info()}. "
                f"Call it on owner {self.owner()}"
            )
        self._check_created()
        try:
            return self._handle.local_value()
        except Exception as error:
            failed: BaseException = self._agent.outgoing.as_remote(error)
        raise failed

    def _get_type(self, timeout: float = UNSET_RPC_TIMEOUT, blocking: bool = True) -> Any:
        """Returns the value's type, or a future of it. Asks its owner once; the value does not move."""
        from tensorcall.rpc import api

        future = self._type_future
        if future is None:
            if self.is_owner():
                future = api._rref_typeof_on_owner(self, blocking=False)
            else:
                future = api._rref_typeof_on_user(self, timeout=timeout, blocking=False)
            # One that failed is asked again.
            self._type_future = future
            future.add_done_callback(self._forget_failed_type)
        return future.wait() if blocking else future

    def _forget_failed_type(self, future: Any) -> None:
        try:
            future.value()
        except BaseException:
            if self._type_future is future:
                self._type_future = None

    def backward(self, dist_autograd_ctx_id: int = -1, retain_graph: bool = False) -> None:
        """Runs the backward pass with the value, a tensor, as its root.

        Args:
            dist_autograd_ctx_id: the id of a distributed autograd context; on the owner, -1 for none.
            retain_graph: keep the graph for another pass.
        """
        if self.is_owner():
            _backward(self.local_value(), dist_autograd_ctx_id, retain_graph)
            return
        if dist_autograd_ctx_id == -1:
            raise RuntimeError("User RRefs require 'dist_autograd_ctx_id' to be specified")
        from tensorcall.rpc import api

        api.rpc_sync(self.owner(), _backward_on_owner, args=(self, dist_autograd_ctx_id, retain_graph))

    # --- its methods ---

    def rpc_sync(self, timeout: float = UNSET_RPC_TIMEOUT) -> Any:
        """Gives a proxy: `rref.rpc_sync().method(…)` calls a method of the value on its owner and waits."""
        return self._proxy("rpc_sync", timeout)

    def rpc_async(self, timeout: float = UNSET_RPC_TIMEOUT) -> Any:
        """Gives a proxy: `rref.rpc_async().method(…)` calls a method of the value and returns a future."""
        return self._proxy("rpc_async", timeout)

    def remote(self, timeout: float = UNSET_RPC_TIMEOUT) -> Any:
        """Gives a proxy: `rref.remote().method(…)` calls a method of the value and returns an RRef to the result."""
        return self._proxy("remote", timeout)

    def _proxy(self, name: str, timeout: float) -> Any:
        from tensorcall.rpc import api

        call: Callable[..., Any] = getattr(api, name)
        return RRefProxy(self, call, timeout)

    # --- how it was made, and its end ---

    def _get_future(self) -> RpcFuture:
        """Returns the future of the call that made the value."""
        return self._creation

    def _get_profiling_future(self) -> Any:
        """Returns the future that is done when the call that made the value was recorded."""
        if self._profiling_future is None:
            raise RuntimeError("Profiling future has not been set!")
        return self._profiling_future

    def _set_profiling_future(self, profilingFuture: Any) -> None:  # noqa: N803 torch's name
        self._profiling_future = profilingFuture

    @property
    def _creating(self) -> bool:
        """Whether the call that makes it is in flight, as far as anybody waits for it."""
        return not self._creation.done()

    @property
    def _unconfirmed(self) -> bool:
        """Whether its owner has not told yet what became of it, and is still waited for."""
        return not (self._handle.fork.settled or self._creation.error is not None)

    def _delete(self) -> None:
        """Lets go of the value ahead of time."""
        self._deleted = True
        self._handle.drop()

    def _check_usable(self, what: str) -> None:
        self._check_created()
        if self._deleted:
            raise RuntimeError(f"{self._described()} has been deleted. Cannot call {what} it after deletion.")

    def _check_created(self) -> None:
        error = self._creation.error
        if error is not None:
            what = "timed out" if isinstance(error, RpcTimeout) else f"failed ({error})"
            raise RuntimeError(
                f"RRef creation via rpc.remote() to {self.owner_name()} {what}, and it is possible that the RRef on "
                "the owner node does not exist."
            ) from error

    # --- sending it ---

    def _check_sendable(self) -> None:
        self._check_created()
        if self._deleted:
            raise RuntimeError(f"{self._described()} has been deleted. Cannot call fork an UserRRef after deletion.")

    def _serialize(self) -> tuple[Any, ...]:
        """Writes it down, for a pickler of one's own; within a call, it is kept until the call has ended."""
        self._check_sendable()
        if not internal.keep(self._handle):
            self._agent.rrefs.keep_for_a_while(self._handle)
        return (*self._handle.rref_id(), *self._id, self._type_hint)

    @staticmethod
    def _deserialize(tp: tuple[Any, ...]) -> Any:
        """Reads what `_serialize` wrote."""
        *rref_id, created_on, local_id, type_hint = tp
        handle = _agent().open_rref(RRefId(*rref_id))
        # On the thread that brings a result nobody can wait for it; whoever sent it keeps it for a while.
        with contextlib.suppress(RuntimeError):
            handle.wait_confirmed()
        return _received(handle, created_on, local_id, type_hint)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RuntimeError("Can not pickle rref in python pickler, rref can only be pickled when using RPC")

    # --- TorchScript ---

    @property
    def _script_handle(self) -> Any:
        """What TorchScript holds: this."""
        return self

    @_script_handle.setter
    def _script_handle(self, other: PyRRef) -> None:
        # TorchScript makes an object of its own to return it: that takes over all of it.
        self.__dict__.update(other.__dict__)
        if not self._handle.is_owner():
            self._agent.rrefs.add_user(self)

    def _script_type(self) -> Any:
        """Returns the value's TorchScript type, as far as it is known."""
        return script_type(self._type_hint, self.local_value() if self.is_owner() else None)

    # --- text ---

    def _described(self) -> str:
        if self.is_owner():
            return f"OwnerRRef(rref_id={self._id})"
        return f"UserRRef(rref_id={self._id}, fork_id={self._fork_id})"

    def __str__(self) -> str:
        if self.is_owner():
            return f"OwnerRRef({self._id})"
        return f"UserRRef(RRefId = {self._id}, ForkId = {self._fork_id})"

    def __repr__(self) -> str:
        return str(self)


class RRef(PyRRef, Generic[_T]):
    """A reference to a value that one worker owns; `RRef[T]` says what type the value has."""


def create(
    agent: Agent, to: Member, call: Call, timeout: float | None, made_by: str, type_hint: TypeHint | None
) -> RRef[Any]:
    """Calls a function on a worker whose result stays there; returns a reference to it.

    Args:
        agent: this worker.
        to: who is called.
        call: the call.
        timeout: how many seconds the call may take; None: for ever. The function runs on there.
        made_by: tells where this was asked for.
        type_hint: what is known of the result's type.
    """
    id = agent.rrefs.new_id()
    handle: Any
    if to.name == agent.me.name:
        core = agent.server.core
        owned = core.rrefs.pending(made_by)
        handle, creation = OwnerRRef(owned, core), agent.outgoing.create_here(to, call, timeout, owned)
    else:
        connection, fork, creation = agent.outgoing.create(to, call, timeout, made_by)
        handle = Handle(connection, fork)
    made: RRef[Any] = RRef._of(agent, handle, id, type_hint)
    made._creation = creation
    return made


def _reduce(rref: PyRRef) -> tuple[Any, ...]:
    rref._check_sendable()
    return _received, (rref._handle, *rref._id, rref._type_hint)


def _received(handle: Any, created_on: int, local_id: int, type_hint: TypeHint | None) -> RRef[Any]:
    """Makes a reference of a handle that arrived. Pickles name this function: it keeps its name and its module."""
    made: RRef[Any] = RRef._of(_agent(), handle, GloballyUniqueId(created_on, local_id), type_hint)
    return made


def _backward(value: Any, context_id: int, retain_graph: bool) -> None:
    import torch.distributed.autograd as dist_autograd

    if not isinstance(value, torch.Tensor):
        raise RuntimeError("RRef should contain a tensor for .backward()")
    if context_id == -1:
        value.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
    else:
        dist_autograd.backward(context_id, [value], retain_graph)  # type: ignore[attr-defined]


def _backward_on_owner(rref: PyRRef, context_id: int, retain_graph: bool) -> None:
    _backward(rref.local_value(), context_id, retain_graph)


for _class in (PyRRef, RRef):
    pickles.register_reducer(_class, _reduce)
