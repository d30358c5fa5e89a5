"""What torch.distributed.rpc.internal has that others lean on: the pickler, its messages, and names of profiles.

The pickler is tensorcall's own (tensorcall.wire.pickles): a tensor leaves the pickle through `persistent_id`. Its table
hangs on the thread only for reducers of others that add to it.
"""

from __future__ import annotations

import contextlib
import enum
import io
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from tensorcall.rpc import profiling
from tensorcall.wire import pickles, rrefs

__all__ = ["PythonUDF", "RPCExecMode", "RemoteException", "deserialize", "serialize"]


# While `serialize` and `deserialize` run: `send_tables` and `recv_tables`, the tensors of the pickle.
_thread_local_tensor_tables = threading.local()
# By which torch pickles; kept for code that derives from them.
_pickler = pickle.Pickler
_unpickler = pickle.Unpickler


class RPCExecMode(enum.Enum):
    """How a function is called."""

    SYNC = "sync"
    ASYNC = "async"
    ASYNC_JIT = "async_jit"
    REMOTE = "remote"


class PythonUDF(NamedTuple):
    """A call of a Python function."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] | None


class RemoteException(NamedTuple):
    """What torch sends in place of a result where a function raised; here exceptions travel whole."""

    msg: str
    exception_type: type[BaseException]


class _Table:
    """Takes tensors out of a pickle, as they are."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.handles: list[rrefs.Handle] = []
        self._places: dict[int, int] = {}

    def add(self, tensor: Any) -> int:
        place = self._places.setdefault(id(tensor), len(self.tensors))
        if place == len(self.tensors):
            self.tensors.append(tensor)
        return place


class _Given:
    """Puts tensors into a pickle, as they are."""

    def __init__(self, tensors: Sequence[Any]) -> None:
        self._tensors = tensors

    def get(self, index: int) -> Any:
        return self._tensors[index]

    def open_rref(self, rref_id: rrefs.RRefId) -> Any:
        from tensorcall.rpc import api

        return api._get_current_rpc_agent().open_rref(rref_id)


class _Keeping(threading.local):
    """The references that were pickled by hand while a call was being prepared."""

    handles: list[Any] | None = None


_keeping = _Keeping()


@contextlib.contextmanager
def _on_thread(name: str, tensors: Sequence[Any]) -> Iterator[None]:
    """Shows a table of tensors to reducers and what they name; in place of that of a pickle around this one."""
    there = vars(_thread_local_tensor_tables)
    before = there.get(name)
    there[name] = tensors
    try:
        yield
    finally:
        if before is None:
            del there[name]
        else:
            there[name] = before


class _InternalRPCPickler:
    """Objects ↔ (bytes, tensors)."""

    def serialize(self, obj: object) -> tuple[bytes, list[Any]]:
        """Pickles an object, its tensors apart, each once. References stay alive as long as the call's arguments."""
        table: Any = _Table()
        with _on_thread("send_tables", table.tensors):
            data = pickles.dumps(obj, table)
        if _keeping.handles is not None:
            _keeping.handles += table.handles
        return data, table.tensors

    def deserialize(self, binary_data: bytes, tensor_table: Sequence[Any]) -> Any:
        """Unpickles what `serialize` made.

        Returns:
            The object; an AttributeError with advice where the pickle names what is missing here, as torch's does.
        """
        given: Any = _Given(tensor_table)
        with _on_thread("recv_tables", tensor_table):
            return pickles.loads(binary_data, given)

    def _register_reducer(self, obj_class: type, reducer: Callable[[Any], tuple[Any, ...]]) -> None:
        """Pickles instances of a class by a function of one's own; the first one registered stays."""
        with contextlib.suppress(ValueError):
            pickles.register_reducer(obj_class, reducer)

    def _tensor_reducer(self, tensor: Any) -> tuple[Any, ...]:
        """How a tensor is left out of a pickle, for reducers of one's own."""
        tensors = _thread_local_tensor_tables.send_tables
        tensors.append(tensor)
        return _InternalRPCPickler._tensor_receiver, (len(tensors) - 1,)

    @classmethod
    def _tensor_receiver(cls, tensor_index: int) -> Any:
        return _thread_local_tensor_tables.recv_tables[tensor_index]

    def _py_rref_reducer(self, py_rref: Any) -> tuple[Any, ...]:
        """How a reference is pickled, for picklers of one's own."""
        return _InternalRPCPickler._py_rref_receiver, (py_rref._serialize(),)

    _rref_reducer = _py_rref_reducer

    @classmethod
    def _py_rref_receiver(cls, rref_fork_data: tuple[Any, ...]) -> Any:
        from tensorcall.rpc.rref import PyRRef

        return PyRRef._deserialize(rref_fork_data)

    def _script_module_reducer(self, script_module: Any) -> tuple[Any, ...]:
        """How scripted code is pickled."""
        return _InternalRPCPickler._script_module_receiver, (script_module.save_to_buffer(),)

    @classmethod
    def _script_module_receiver(cls, script_module_serialized: bytes) -> Any:
        load: Any = torch.jit.load
        return load(io.BytesIO(script_module_serialized))


_internal_rpc_pickler = _InternalRPCPickler()


def serialize(obj: object) -> tuple[bytes, list[Any]]:
    """Pickles an object, its tensors apart."""
    return _internal_rpc_pickler.serialize(obj)


def deserialize(binary_data: bytes, tensor_table: Sequence[Any]) -> Any:
    """Unpickles what `serialize` made."""
    return _internal_rpc_pickler.deserialize(binary_data, tensor_table)


def serialize_keeping(pickler: Any, obj: object) -> tuple[bytes, list[Any], list[Any]]:
    """Pickles by somebody's own pickler.

    Returns:
        The pickle, its tensors, and the references in it, which must be kept alive until the receiver has its own.
    """
    before, _keeping.handles = _keeping.handles, []
    try:
        data, tensors = pickler.serialize(obj)
        return data, tensors, _keeping.handles
    finally:
        _keeping.handles = before


def keep(handle: Any) -> bool:
    """Keeps a reference that is being pickled by hand; False if no call is being prepared on this thread."""
    if _keeping.handles is None:
        return False
    _keeping.handles.append(handle)
    return True


def run_serialized(data: bytes, tensors: Sequence[Any]) -> Any:
    """Runs what a pickler of the caller's own has pickled."""
    from tensorcall.rpc import callees

    udf = deserialize(data, tensors)
    if isinstance(udf, AttributeError):
        raise udf
    return callees.run(udf.func, udf.args or (), udf.kwargs or {})


def _run_function(python_udf: Any) -> Any:
    """Runs a call as torch's handler does.

    Returns:
        Its result; a `RemoteException` if it raised, or if the call is an AttributeError that `deserialize` returned.
    """
    from tensorcall.rpc import api

    try:
        if isinstance(python_udf, AttributeError):
            raise python_udf
        return python_udf.func(*python_udf.args, **python_udf.kwargs)
    except Exception as error:
        text = f"On {api._get_current_rpc_agent().get_worker_info()}:\n{error!r}\n{traceback.format_exc()}"
        sys.stderr.write(f"{text}\n")
        return RemoteException(text, type(error))


def _handle_exception(result: Any) -> None:
    """Raises what a `RemoteException` tells of; takes any other result as it is.

    Raises:
        RuntimeError: the exception's type can't be made of a text alone.
    """
    if not isinstance(result, RemoteException):
        return
    text = result.msg.encode().decode("unicode_escape")
    try:
        error = result.exception_type(text)
    except BaseException as trouble:
        raise RuntimeError(
            f"Failed to create original exception type. Error msg was {trouble} Original exception on remote side was "
            f"{text}"
        ) from trouble
    raise error


def _build_rpc_profiling_key(
    exec_type: RPCExecMode, func_name: str, current_worker_name: str, dst_worker_name: str
) -> str:
    """Names a call in profiles."""
    return profiling.build_key(exec_type, func_name, current_worker_name, dst_worker_name)


def _start_record_function(
    exec_type: RPCExecMode, func_name: str, current_worker_name: str, dest_worker_name: str
) -> Any:
    """Begins to record a call; the caller ends it."""
    profiler: Any = torch.autograd
    if not profiler._profiler_enabled():
        raise AssertionError("Autograd profiler should be enabled.")
    record = profiler._RecordFunction()
    key = _build_rpc_profiling_key(exec_type, str(func_name), current_worker_name, dest_worker_name)
    profiler._run_before_callbacks(record, key)
    return record
