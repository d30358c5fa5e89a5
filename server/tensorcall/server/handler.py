"""The handler: one a process, with the contract of PyTorch's PythonRpcHandler.

Follows torch/csrc/distributed/rpc/python_rpc_handler.cpp and torch/distributed/rpc/internal.py. What torch's Python
side gets wrong is not followed: messages go through no `unicode_escape`, exceptions keep their args, attributes, notes
and cause, more than AttributeError is guarded against, and nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeGuard

from tensorcall.server.gil import GilSampler
from tensorcall.v1 import error_pb2
from tensorcall.wire import exceptions, pickles
from tensorcall.wire.errors import BadArguments, HandlerCleanedUp, NotImplementedByPeer
from tensorcall.wire.tensors import TensorReader, TensorWriter

if TYPE_CHECKING:
    from torch._C import CompilationUnit, JitType

    from tensorcall.wire.blobs import Blob

# torch's key, from torch/csrc/distributed/rpc/tensorpipe_agent.cpp.
GIL_WAIT_METRIC = "agent.gil_average_wait_time_us"


class PythonUDF(NamedTuple):
    """A call to run: torch/distributed/rpc/internal.py's `PythonUDF`."""

    func: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}  # shared, but nobody changes it


@dataclass(frozen=True, slots=True)
class RRefHooks:
    """What the handler asks RRef support to do: RRefTypeFunctions and RRefProxyFunctions of python_rpc_handler.h.

    As torch has these in Python: `torch.distributed.rpc.api` and `rref_proxy`. All are set together, since references
    come with all of it or not at all.
    """

    type_on_owner: Callable[..., Any]
    """(rref, *, blocking) → the type of the value that this process owns, or a future of it."""
    type_on_user: Callable[..., Any]
    """(rref, *, timeout, blocking) → the type of the value, asked from its owner once, or a future of it."""
    rpc_sync: Callable[..., Any]
    """(rref, timeout) → a proxy whose methods run on the value and wait."""
    rpc_async: Callable[..., Any]
    """(rref, timeout) → a proxy whose methods run on the value and give futures."""
    remote: Callable[..., Any]
    """(rref, timeout) → a proxy whose methods run on the value and give references."""


@dataclass(frozen=True, slots=True)
class PersistentHooks:
    """Objects that leave pickles by an id of their own; see `pickles.dumps` and `pickles.loads`."""

    by_class: Mapping[type, Callable[[Any], tuple[Any, ...]]] = field(default_factory=dict)
    """Class → function that gives the id."""
    by_kind: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """The id's kind → function that gives the object."""


class Handler:
    """Runs UDFs and (de)serialises for them; made at first use, one a process, until the process ends.

    Nothing happens to it when the interpreter exits: a daemon thread may still be using it then. After `cleanup` every
    use raises HandlerCleanedUp, until `init`; only `get_instance`, `init`, `cleanup` and `metrics` work regardless.
    """

    # Leaked on purpose, as torch's. A dict, because its setdefault is atomic: a lock could be found held by the thread
    # itself (a finaliser may come at any moment), or by one that waits for an import that we are part of.
    _made: ClassVar[dict[str, Handler]] = {}
    _instance: ClassVar[Handler | None] = None

    def __init__(self) -> None:
        raise TypeError("there is one handler a process: Handler.get_instance()")

    @classmethod
    def get_instance(cls) -> Handler:
        """Returns the process's handler, from any thread at any time, also while modules are being imported."""
        instance = cls._instance
        if instance is None:
            # Of several threads that come here at once one's candidate stays. The others' are dropped; making one
            # imports nothing and has no effect.
            candidate = cls.__new__(cls)
            candidate._set_up()
            instance = Handler._instance = cls._made.setdefault("handler", candidate)
        return instance

    def _set_up(self) -> None:
        self._ready = True
        self._rref_hooks: RRefHooks | None = None
        self._persistent = PersistentHooks()
        self._gil = GilSampler()

    def init(self) -> None:
        """Makes the handler usable; does nothing if it is. After `cleanup` it begins without hooks."""
        self._ready = True

    def cleanup(self) -> None:
        """Drops all hooks and ends GIL profiling. Calls under way go on; reducers belong to the process and stay."""
        self._ready = False
        self._rref_hooks = None
        self._persistent = PersistentHooks()
        self._gil.stop()

    # UDFs.

    def run_python_udf(self, udf: object) -> Any:
        """Runs a UDF and returns what it returns, or what it raises as a remote exception; never raises itself.

        As `runPythonUdf` does (`_run_function` in internal.py). KeyboardInterrupt and SystemExit are the UDF's matter,
        too: a caller must not be able to end the server.

        Args:
            udf: a PythonUDF, or what `deserialize` gave instead of one because something is missing on this side; that
                is raised as if the UDF had raised it.

        Raises:
            HandlerCleanedUp: after `cleanup`.
        """
        if not self._ready:
            raise _cleaned_up()
        try:
            if type(udf) is not PythonUDF:
                raise _not_a_udf(udf)
            return udf.func(*udf.args, **udf.kwargs)
        except BaseException as error:
            return exceptions.to_tree(error, skip=_is_ours)

    def handle_exception(self, obj: object) -> None:
        """Raises the exception that a remote exception stands for; does nothing with any other object.

        As `handleException` (`_handle_exception` in internal.py): an instance of the original type where that is known
        here, also a RemoteError, with message, args and remote traceback.
        """
        if self.is_remote_exception(obj):
            raise exceptions.from_tree(obj)

    def is_remote_exception(self, obj: object) -> TypeGuard[error_pb2.ExceptionTree]:
        """Tells whether `run_python_udf` made this of an exception."""
        if not self._ready:
            raise _cleaned_up()
        return type(obj) is error_pb2.ExceptionTree

    # Serialisation.

    def serialize(self, obj: object) -> tuple[bytes, list[Blob]]:
        """Pickles an object, its tensors apart.

        Raises:
            Unencodable: it can't be pickled, or one of its tensors can't be sent.
        """
        if not self._ready:
            raise _cleaned_up()
        writer = TensorWriter()
        data = pickles.dumps(obj, writer, persistent=self._persistent.by_class)
        return data, writer.blobs

    def deserialize(self, data: bytes | memoryview, blobs: Sequence[Blob]) -> Any:
        """Unpickles what `serialize` made. Runs code of the sender's choice.

        Returns:
            The object; an AttributeError with advice (returned, not raised) where the pickle names a function, class
            or module that is missing on this side.

        Raises:
            BadPayload: malformed.
        """
        if not self._ready:
            raise _cleaned_up()
        return pickles.loads(data, TensorReader(blobs), persistent=self._persistent.by_kind)

    def register_reducer(self, cls: type, reducer: Callable[[Any], tuple[Any, ...]]) -> None:
        """Pickles instances of a class by a function of one's own; see `pickles.register_reducer`."""
        if not self._ready:
            raise _cleaned_up()
        pickles.register_reducer(cls, reducer)

    @property
    def persistent_hooks(self) -> PersistentHooks:
        """What leaves pickles beside tensors; nothing unless set."""
        if not self._ready:
            raise _cleaned_up()
        return self._persistent

    @persistent_hooks.setter
    def persistent_hooks(self, hooks: PersistentHooks) -> None:
        if not self._ready:
            raise _cleaned_up()
        self._persistent = hooks

    # JIT types.

    def parse_type_from_str(self, text: str) -> JitType:
        """Reads a TorchScript type such as "Dict[str, Tensor]"; the text meets no compiler.

        Raises:
            UnknownType: it names no type.
        """
        if not self._ready:
            raise _cleaned_up()
        # Late, since it imports torch, which the rest of the handler can do without.
        from tensorcall.server import torch_types

        return torch_types.parse(text)

    def jit_compilation_unit(self) -> CompilationUnit:
        """Returns the compilation unit that holds everything scripted from Python in this process."""
        if not self._ready:
            raise _cleaned_up()
        from tensorcall.server import torch_types

        return torch_types.jit_compilation_unit()

    # RRefs.

    @property
    def rref_hooks(self) -> RRefHooks | None:
        """RRef support; None unless it was installed."""
        if not self._ready:
            raise _cleaned_up()
        return self._rref_hooks

    @rref_hooks.setter
    def rref_hooks(self, hooks: RRefHooks | None) -> None:
        if not self._ready:
            raise _cleaned_up()
        self._rref_hooks = hooks

    def rref_type_on_owner(self, rref: Any, *, blocking: bool = True) -> Any:
        """Tells the type of a value that this process owns, or a future of it."""
        return self._rrefs().type_on_owner(rref, blocking=blocking)

    def rref_type_on_user(self, rref: Any, *, timeout: float | None = None, blocking: bool = True) -> Any:
        """Tells the type of a value that another process owns, or a future of it. The timeout is in seconds."""
        return self._rrefs().type_on_user(rref, timeout=timeout, blocking=blocking)

    def rref_rpc_sync(self, rref: Any, timeout: float | None = None) -> Any:
        """Gives a proxy whose methods run on the value and wait for the result."""
        return self._rrefs().rpc_sync(rref, timeout)

    def rref_rpc_async(self, rref: Any, timeout: float | None = None) -> Any:
        """Gives a proxy whose methods run on the value and return futures."""
        return self._rrefs().rpc_async(rref, timeout)

    def rref_remote(self, rref: Any, timeout: float | None = None) -> Any:
        """Gives a proxy whose methods run on the value and return references to the result."""
        return self._rrefs().remote(rref, timeout)

    def _rrefs(self) -> RRefHooks:
        hooks = self.rref_hooks
        if hooks is None:
            raise NotImplementedByPeer("no RRef support is installed in this handler: set its rref_hooks")
        return hooks

    # Metrics.

    def enable_gil_profiling(self, on: bool = True) -> None:
        """Turns measuring the wait for the GIL on or off. It is off unless turned on."""
        if not self._ready:
            raise _cleaned_up()
        if on:
            self._gil.start()
        else:
            self._gil.stop()

    def gil_average_wait_us(self) -> float:
        """Returns the mean time that threads wait for the GIL, in microseconds; 0.0 if it is not measured."""
        if not self._ready:
            raise _cleaned_up()
        return self._gil.average_us() if self._gil.running else 0.0

    def metrics(self) -> dict[str, float]:
        """Returns the metrics that are measured: as in torch, the wait for the GIL only while it is profiled."""
        return {GIL_WAIT_METRIC: self._gil.average_us()} if self._gil.running else {}


def _is_ours(frame: FrameType) -> bool:
    # It says nothing about the UDF.
    return frame.f_code is Handler.run_python_udf.__code__


def _cleaned_up() -> HandlerCleanedUp:
    return HandlerCleanedUp("the handler was cleaned up: call Handler.get_instance().init() before using it again")


def _not_a_udf(obj: object) -> Exception:
    if isinstance(obj, AttributeError):
        return obj
    return BadArguments(f"the handler runs a PythonUDF, not a {type(obj).__name__}")
