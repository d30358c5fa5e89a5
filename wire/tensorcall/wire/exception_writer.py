"""Exceptions → ExceptionTree. Whatever an exception does when it is looked at, it gets described."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import FrameType, MemberDescriptorType
from typing import Any

from tensorcall.v1 import error_pb2, value_pb2
from tensorcall.wire import values
from tensorcall.wire.errors import RemoteError
from tensorcall.wire.exception_classes import (
    BASE_GROUP,
    FIELDS,
    class_mro,
    class_vars,
    is_builtin,
    is_group,
    known_bases,
)
from tensorcall.wire.exception_shrinking import shrink
from tensorcall.wire.texts import attempt, clean, cut, safe_repr, safe_str, type_name
from tensorcall.wire.tracebacks import from_traceback

MAX_NODES = 1000
MAX_TEXT = 1 << 24
# A session's message holds a tree with room to spare.
MAX_TREE_BYTES = 1 << 26
# Some protobuf runtimes stop parsing at 100 messages in one another. An argument is checked within so many lists, two
# messages each, so that it still parses within a tree within a reply.
_SPARE_LISTS = 5

# As C has them: a class may define properties of these names.
_raw: Any = BaseException.__dict__
_DICT, _ARGS, _TRACEBACK = _raw["__dict__"], _raw["args"], _raw["__traceback__"]
_CAUSE, _CONTEXT, _SUPPRESS = _raw["__cause__"], _raw["__context__"], _raw["__suppress_context__"]


def to_tree(
    exc: BaseException,
    *,
    worker: str = "",
    error_id: str = "",
    tracebacks: bool = True,
    skip: Callable[[FrameType], bool] | None = None,
) -> error_pb2.ExceptionTree:
    """Describes an exception with its causes, contexts and members. Never raises, whatever the exception is.

    An exception that came from a third worker (a RemoteError that from_tree made) is described as the original, with
    the frames of both workers.

    Args:
        exc: the exception.
        worker: names this worker; the tree of an exception from a third worker names that.
        error_id: under which the whole tree is kept.
        tracebacks: whether the receiver may see frames.
        skip: tells which frames to leave out at the top: those of our own.
    """
    origin = _tree_of(exc)
    tree = error_pb2.ExceptionTree(
        worker=clean((origin.worker if origin else "") or worker),
        error_id=clean(error_id),
        retryable=attempt(False, lambda: getattr(exc, "retryable", None) is True),
        truncated=origin is not None and origin.truncated,
    )
    nodes, left_out = _walk(exc)
    indices = {id(node): index for index, node in enumerate(nodes)}
    for node in nodes:
        message = tree.exceptions.add()
        _name(message, node)
        for describe in (_describe_state, _describe_attributes, _describe_notes):
            attempt(None, describe, message, node)
        if tracebacks:
            message.frames.extend(attempt([], _frames, node, skip))
        _link(message, node, indices)
    if left_out:
        tree.truncated = True
        tree.exceptions[-1].notes.append(f"… ({left_out} more exceptions that led to this were left out)")
    return shrink(tree, MAX_TREE_BYTES)


def raw_dict(exc: BaseException) -> dict[str, Any]:
    """exc.__dict__, whatever its class makes of that."""
    return _DICT.__get__(exc)  # type: ignore[no-any-return]


def _walk(exc: BaseException) -> tuple[list[BaseException], int]:
    """Lists what hangs on an exception, nearest first, and counts what is beyond MAX_NODES."""
    found = [exc]
    seen = {id(exc)}
    for node in found:  # grows as it is walked
        for near in (_CAUSE.__get__(node), _CONTEXT.__get__(node), *_members(node)):
            if near is not None and id(near) not in seen:
                seen.add(id(near))
                found.append(near)
    return found[:MAX_NODES], max(len(found) - MAX_NODES, 0)


def _link(message: error_pb2.RemoteException, exc: BaseException, indices: dict[int, int]) -> None:
    cause, context = indices.get(id(_CAUSE.__get__(exc))), indices.get(id(_CONTEXT.__get__(exc)))
    if cause is not None:
        message.cause = cause
    if context is not None:
        message.context = context
    message.suppress_context = _SUPPRESS.__get__(exc)
    message.members.extend(indices[id(member)] for member in _members(exc) if id(member) in indices)


def _members(exc: BaseException) -> Sequence[BaseException]:
    if is_group(type(exc)):
        return BASE_GROUP.exceptions.__get__(exc)  # type: ignore[no-any-return]
    # On Python 3.10: the groups of the backport, and those that came from a newer Python.
    members: Any = raw_dict(exc).get("_exceptions", raw_dict(exc).get("exceptions"))
    is_backport = any(type_name(base)[1] == "BaseExceptionGroup" for base in class_mro(type(exc)))
    if (is_backport or _is_remote(exc)) and type(members) in (list, tuple):
        return [member for member in members if issubclass(type(member), BaseException)]
    return ()


def _name(message: error_pb2.RemoteException, exc: BaseException) -> None:
    origin = _node_of(exc)
    if origin is None:
        message.module, message.type = type_name(type(exc))
        message.bases.extend(known_bases(type(exc)))
    else:
        message.module, message.type = origin.module, origin.type
        message.bases.extend(origin.bases)


def _describe_state(message: error_pb2.RemoteException, exc: BaseException) -> None:
    message.message = cut(safe_str(exc), MAX_TEXT)
    origin = _node_of(exc)
    if origin is not None and _ARGS.__get__(exc) is raw_dict(exc)["_origin"].args:
        message.args.extend(origin.args)
        message.inexact_args.extend(origin.inexact_args)
    else:
        _write_args(message, exc)


def _describe_attributes(message: error_pb2.RemoteException, exc: BaseException) -> None:
    origin = _node_of(exc)
    if origin is not None:
        for name, value in origin.attributes.items():
            message.attributes[name].CopyFrom(value)
    for name, attribute in _attributes(exc):
        encoded = _encode(attribute)
        if encoded is not None:
            message.attributes[clean(name)].CopyFrom(encoded)


def _describe_notes(message: error_pb2.RemoteException, exc: BaseException) -> None:
    notes: Any = raw_dict(exc).get("__notes__", ())
    # Python prints what isn't a sequence, too.
    for note in notes if type(notes) in (list, tuple) else (notes,):
        message.notes.append(clean(cut(note, MAX_TEXT)) if type(note) is str else safe_repr(note))


def _write_args(message: error_pb2.RemoteException, exc: BaseException) -> None:
    args = _ARGS.__get__(exc)
    if is_group(type(exc)):
        args = args[:1]  # the second are the members
    for index, arg in enumerate(args):
        value = _encode(arg)
        if value is None:
            value = value_pb2.Value(string=safe_repr(arg))
            message.inexact_args.append(index)
        message.args.append(value)


def _attributes(exc: BaseException) -> Iterator[tuple[str, object]]:
    """Finds what an instance holds: its __dict__, its slots, and what a builtin class keeps besides `args`."""
    ours = {*RemoteError.__annotations__, "_origin"} if _is_remote(exc) else set()
    for name, value in list(raw_dict(exc).items()):
        if type(name) is str and not is_dunder(name) and name not in ours:
            yield name, value
    args = _ARGS.__get__(exc)
    for cls in class_mro(type(exc)):
        if is_builtin(cls):
            names: Sequence[str] = FIELDS.get(cls, ())
        else:
            members = class_vars(cls).items()
            names = [n for n, member in members if type(member) is MemberDescriptorType and not is_dunder(n)]
        for name in names:
            value = attempt(None, class_vars(cls)[name].__get__, exc)
            # What the constructor sets from `args` need not travel twice.
            if value is not None and not any(value is arg for arg in args):
                yield name, value


def _encode(obj: object) -> value_pb2.Value | None:
    """Writes an object as a Value; None if it has no such form."""

    def write() -> value_pb2.Value:
        nested = obj
        for _ in range(_SPARE_LISTS):
            nested = [nested]
        value = value_pb2.Value.FromString(values.encode(nested))
        for _ in range(_SPARE_LISTS):
            value = value.list.items[0]
        return value

    return attempt(None, write)


def _frames(exc: BaseException, skip: Callable[[FrameType], bool] | None) -> list[error_pb2.Frame]:
    origin = _node_of(exc)
    return from_traceback(_TRACEBACK.__get__(exc), skip=skip, deeper=origin.frames if origin is not None else ())


def _tree_of(exc: BaseException) -> error_pb2.ExceptionTree | None:
    """The tree that an exception was made from, if it came from another worker."""
    tree = raw_dict(exc).get("tree") if _is_remote(exc) else None
    return tree if isinstance(tree, error_pb2.ExceptionTree) else None


def _node_of(exc: BaseException) -> error_pb2.RemoteException | None:
    origin = raw_dict(exc).get("_origin") if _is_remote(exc) else None
    return None if origin is None else origin.node


def _is_remote(exc: BaseException) -> bool:
    return issubclass(type(exc), RemoteError)  # isinstance would ask for __class__, which may be a property


def is_dunder(name: str) -> bool:
    """Whether a name is one of Python's own."""
    return name.startswith("__") and name.endswith("__")
