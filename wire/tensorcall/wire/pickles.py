"""Objects ↔ (pickle, tensors): the serialisation of PyTorch's RPC handler.

Follows torch/distributed/rpc/internal.py (`_InternalRPCPickler`) in what it does, not in how: a tensor leaves the
pickle through `persistent_id` and no table hangs on the thread, so a pickler that raises leaves nothing behind.
Unpickling runs whatever the sender wants: who may send pickles is decided before anything here is called.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import numpy as np

from tensorcall.wire import rrefs
from tensorcall.wire.errors import BadPayload, TensorcallError, Unencodable
from tensorcall.wire.tensors import TensorReader, TensorWriter, is_tensor

# Fixed, not pickle.HIGHEST_PROTOCOL: a newer Python must be understood by an older one.
PROTOCOL = 5

_NONE: Mapping[Any, Any] = types.MappingProxyType({})

# Classes that are certainly no tensors. persistent_id is asked about every single object; this answers most of them.
_PLAIN = frozenset(
    {int, str, float, bool, type(None), bytes, list, tuple, dict, set, frozenset, complex, types.FunctionType, type}
)
# For these the pickler never asks for a reducer.
_UNASKED = _PLAIN - {types.FunctionType, type} | {bytearray}

_reducers: dict[type, Callable[[Any], tuple[Any, ...]]] = {}


def register_reducer(cls: type, reducer: Callable[[Any], tuple[Any, ...]]) -> None:
    """Pickles instances of exactly this class by `reducer`, which returns what `__reduce__` would.

    Holds for the whole process, as torch's `_register_reducer` does; a registered class comes before everything else,
    tensors included. Registering the same reducer again does nothing.

    Raises:
        TypeError: pickle has its own way with that class and never asks for a reducer.
        ValueError: the class has another reducer; `unregister_reducer` it first. (torch keeps the first in silence.)
    """
    if cls in _UNASKED:
        raise TypeError(f"pickle never asks how to reduce a {cls.__name__}: wrap it in a class of yours")
    if _reducers.setdefault(cls, reducer) is not reducer:
        raise ValueError(f"{cls.__module__}.{cls.__qualname__} has another reducer: unregister_reducer() it first")


def unregister_reducer(cls: type) -> None:
    """Takes back what `register_reducer` did for this class, if it did."""
    _reducers.pop(cls, None)


class _Pickler(pickle.Pickler):
    def __init__(
        self, stream: io.BytesIO, tensors: TensorWriter, persistent: Mapping[type, Callable[[Any], tuple[Any, ...]]]
    ) -> None:
        super().__init__(stream, protocol=PROTOCOL)
        self._tensors = tensors
        self._persistent = persistent

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        cls = type(obj)
        if cls in _PLAIN:
            return None
        if cls in self._persistent:
            return self._persistent[cls](obj)
        # A numpy scalar is smaller in the pickle than in the table.
        if is_tensor(obj) and cls not in _reducers and not isinstance(obj, np.generic) and not _keeps_strides(obj):
            try:
                return ("tensor", self._tensors.add(obj))
            except Unencodable:
                # Arrays of Python objects and the like have no form as a blob, but numpy can pickle them.
                if cls is not np.ndarray:
                    raise
        if isinstance(obj, rrefs.Handle):
            self._tensors.handles.append(obj)
            return ("rref", rrefs.encode(obj.rref_id()))
        return None

    def reducer_override(self, obj: Any) -> Any:
        # Not dispatch_table: it would have to be a copy of copyreg's, merged anew each time.
        reducer = _reducers.get(type(obj))
        if reducer is not None:
            return reducer(obj)
        if isinstance(obj, _script_types()):
            script: Any = obj
            return load_script, (script.save_to_buffer(),)
        if is_tensor(obj) and _keeps_strides(obj):
            return load_strided, (obj.detach().contiguous(), tuple(obj.stride()), obj.requires_grad)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, tensors: TensorReader, persistent: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(stream)
        self._tensors = tensors
        self._persistent = persistent

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("tensor", int(index)):
                return self._tensors.get(index)
            case ("rref", bytes(name)):
                return self._tensors.open_rref(rrefs.decode(name, 0, len(name)))
            case (str(kind), *rest) if kind in self._persistent:
                return self._persistent[kind](*rest)
        raise BadPayload(f"the pickle names {pid!r:.100}, which is not known here")


def dumps(
    obj: object,
    tensors: TensorWriter,
    *,
    persistent: Mapping[type, Callable[[Any], tuple[Any, ...]]] = _NONE,
) -> bytes:
    """Pickles an object, its tensors apart.

    Args:
        obj: anything that pickle takes, ScriptModules and ScriptFunctions too; functions and classes go by name.
        tensors: the table that tensors and arrays go to, each once. Subclasses of them, arrays of Python objects and
            numpy scalars are left to pickle.
        persistent: what else leaves the pickle: class → function that gives an instance's persistent id, a tuple
            that begins with its kind (a str); the other side's `loads` has a loader for that kind.

    Raises:
        Unencodable: pickle can't; the message says what, and the cause is pickle's error. What a reducer of the
            caller's raises passes through.
    """
    stream = io.BytesIO()
    try:
        _Pickler(stream, tensors, persistent).dump(obj)
    except TensorcallError:
        raise
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
        raise Unencodable(
            f"a {type(obj).__name__} can't be pickled: {error}. Pickle sends functions and classes by name, so they "
            "must stand at the top level of a module that both sides can import"
        ) from error
    return stream.getvalue()


def loads(
    data: bytes | memoryview,
    tensors: TensorReader,
    *,
    persistent: Mapping[str, Callable[..., Any]] = _NONE,
) -> Any:
    """Unpickles what `dumps` made. Runs code of the sender's choice.

    Args:
        data: the pickle, all of it and nothing else.
        tensors: the table that it names tensors of.
        persistent: kind of a persistent id → function that makes the object from the rest of the id.

    Returns:
        The object. Where the pickle names a function, class or module that is missing on this side: an AttributeError
        with advice, returned and not raised, so that it travels on as the result of the call. torch does so for
        AttributeError; here a module that can't be imported is one, too.

    Raises:
        BadPayload: truncated, garbled, or what it makes refuses to be made; the cause is the error that came up.
    """
    stream = io.BytesIO(data)
    try:
        obj = _Unpickler(stream, tensors, persistent).load()
    except TensorcallError:
        raise
    except (AttributeError, ImportError) as error:
        return _missing(error)
    except Exception as error:
        # A garbled pickle may raise anything at all, as may the code that it runs.
        raise BadPayload(f"the pickle can't be read: {type(error).__name__}: {error}") from error
    if stream.read(1):
        raise BadPayload("something follows the end of the pickle")
    return obj


def is_missing(obj: object) -> TypeGuard[AttributeError]:
    """Whether `loads` returned this for want of what the pickle names, not because it holds it."""
    return type(obj) is AttributeError and getattr(obj, _MISSING, None) is True


_MISSING = "missing_here"


def _missing(error: AttributeError | ImportError) -> AttributeError:
    result = AttributeError(
        f"{error}. Pickle sends functions and classes by name, not their code: make sure that the module is importable "
        "on the worker, and that caller and worker have the same version of it (what a script defines in __main__ "
        "must move to a module)",
        name=error.name,
    )
    result.__cause__ = error
    setattr(result, _MISSING, True)
    return result


# Up to here gaps between a tensor's elements are kept whatever they take; beyond, as long as they take no more than
# the elements.
_SMALL_BYTES = 8 * 1024


def _keeps_strides(obj: Any) -> bool:
    """Tells whether a tensor arrives with its strides, where the table alone would make it contiguous; as by torch."""
    torch: Any = sys.modules.get("torch")
    if torch is None or type(obj) is not torch.Tensor or obj.layout is not torch.strided or obj.is_quantized:
        return False
    if obj.is_contiguous() or obj.numel() == 0:
        return False
    extent = 1
    for stride, size in sorted(zip(obj.stride(), obj.shape, strict=True)):
        if size > 1:
            if stride < extent:
                return False  # elements share memory, as those of an expanded tensor do
            extent = stride * (size - 1) + extent
    nbytes: int = extent * obj.element_size()
    return nbytes <= _SMALL_BYTES or extent <= 2 * obj.numel()


def load_strided(tensor: Any, strides: tuple[int, ...], requires_grad: bool) -> Any:
    """Gives a tensor the strides that it had.

    Pickles name this function: it keeps its name and its module.
    """
    # Only imported where a tensor of torch has arrived.
    import torch

    with torch.no_grad():
        made = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    return made.requires_grad_(requires_grad)


_found_script_types: tuple[type, ...] = ()


def _script_types() -> tuple[type, ...]:
    """Returns torch's classes of scripted code; none as long as nobody has imported torch."""
    global _found_script_types
    if not _found_script_types:
        jit: Any = sys.modules.get("torch.jit")
        # Both are there once torch.jit is imported for good.
        if hasattr(jit, "ScriptModule") and hasattr(jit, "ScriptFunction"):
            _found_script_types = (jit.ScriptModule, jit.ScriptFunction)
    return _found_script_types


def load_script(data: bytes) -> Any:
    """Loads what torch.jit.save wrote; a ScriptFunction arrives as a ScriptModule that is called the same way.

    Pickles name this function: it keeps its name and its module. On a machine without CUDA everything goes to the CPU.
    """
    # Only imported where a peer that may send pickles has sent a script.
    import torch

    load: Any = torch.jit.load  # torch doesn't annotate it
    return load(io.BytesIO(data), map_location=None if torch.cuda.is_available() else "cpu")
