"""ExceptionTree → exceptions that are what they were on the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from types import MemberDescriptorType
from typing import Any, NamedTuple

from tensorcall.v1 import error_pb2
from tensorcall.wire import values
from tensorcall.wire.errors import RemoteError, TensorcallError
from tensorcall.wire.exception_classes import (
    FIELDS,
    candidates,
    class_mro,
    class_vars,
    derive,
    instantiate,
    is_builtin,
    is_group,
)
from tensorcall.wire.exception_writer import MAX_NODES, is_dunder, raw_dict, to_tree
from tensorcall.wire.texts import attempt
from tensorcall.wire.traceback_text import format_tree
from tensorcall.wire.tracebacks import to_traceback

# Tracebacks are rebuilt for so many frames of one tree, nearest first; a few microseconds each.
MAX_FRAMES = 10_000

# As C has them: a class may define properties of these names.
_raw: Any = BaseException.__dict__
_ARGS, _TRACEBACK = _raw["args"], _raw["__traceback__"]
_CAUSE, _CONTEXT, _SUPPRESS = _raw["__cause__"], _raw["__context__"], _raw["__suppress_context__"]


class _Origin(NamedTuple):
    """Where a rebuilt exception comes from."""

    node: error_pb2.RemoteException
    place: int
    args: tuple[object, ...]


class _Rebuilt(RemoteError):
    """What from_tree makes: of classes that derive from this and the original's class.

    `reason` is the original class' own attribute, if it has one of that name.
    """

    # Prints as what it is to everybody else.
    __module__ = RemoteError.__module__
    __qualname__ = RemoteError.__qualname__

    _origin: _Origin | None = None
    # Class attributes, so that an original's property of the name does not stand before the instance's attribute.
    metadata: dict[str, str] = {}  # noqa: RUF012
    retry_after: float | None = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        # Only for who calls type(error)(…), and expects the constructor of the original class.
        super(TensorcallError, self).__init__(*args, **kwargs)
        raw_dict(self)["metadata"] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Keeps the original class' own from being run: it knows nothing of this subclass."""

    def __str__(self) -> str:
        # What the worker saw. Some code sets args to say more.
        origin = raw_dict(self).get("_origin")
        return origin.node.message if origin is not None and origin.args is _ARGS.__get__(self) else super().__str__()

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[[bytes], RemoteError], tuple[bytes]]:
        # pickle would not find the class by its name.
        tree = to_tree(self, worker=self.worker, error_id=self.tree.error_id if self.tree is not None else "")
        return from_bytes, (tree.SerializeToString(),)

    @cached_property
    def remote_traceback(self) -> str:  # type: ignore[override]
        origin = raw_dict(self).get("_origin")
        return "" if origin is None or self.tree is None else format_tree(self.tree, origin.place)


_Rebuilt.__name__ = RemoteError.__name__
# What a rebuilt exception's attributes must not replace.
_RESERVED = frozenset((*RemoteError.__annotations__, *_Rebuilt.__annotations__, "args", "with_traceback", "add_note"))


def from_tree(tree: error_pb2.ExceptionTree) -> RemoteError:
    """Rebuilds an exception and all that hangs on it. Never raises, whatever the tree says.

    Raise it outside of any `except` block: within one, Python replaces its `__context__`.

    Returns:
        An instance of RemoteError and of the original class, where that is a subclass of Exception that is registered
        or in a module that is imported already; else of RemoteError and the nearest such builtin or torch class that
        the original derives from; else of RemoteError alone. In any case it prints as the original.
    """
    nodes = list(tree.exceptions[:MAX_NODES]) or [error_pb2.RemoteException()]
    built: dict[int, RemoteError] = {}
    grouped: set[int] = set()
    for index in _members_first(nodes):
        members = []
        for i in nodes[index].members:
            # A group may be in one group only: else eleven of them could print as millions.
            if i in built and i not in grouped:
                members.append(built[i])
                if nodes[i].members:
                    grouped.add(i)
        built[index] = _build(tree, nodes[index], index, members)
    budget = MAX_FRAMES
    for index, node in enumerate(nodes):
        error = built[index]
        _CAUSE.__set__(error, built.get(node.cause) if node.HasField("cause") else None)
        _CONTEXT.__set__(error, built.get(node.context) if node.HasField("context") else None)
        _SUPPRESS.__set__(error, node.suppress_context)  # setting a cause set it
        budget -= min(len(node.frames), 201)
        if budget >= 0:
            _TRACEBACK.__set__(error, to_traceback(node.frames))
    return built[0]


def from_bytes(tree: bytes) -> RemoteError:
    """Rebuilds an exception from a serialized ExceptionTree."""
    return from_tree(error_pb2.ExceptionTree.FromString(tree))


def _members_first(nodes: list[error_pb2.RemoteException]) -> Iterator[int]:
    """Orders nodes so that groups come after their members, as far as there is no cycle."""
    done: set[int] = set()
    entered: set[int] = set()
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            index = stack[-1]
            if index not in entered:
                entered.add(index)
                stack.extend(i for i in nodes[index].members if i < len(nodes) and i not in entered)
                continue
            stack.pop()
            if index not in done:
                done.add(index)
                yield index


def _build(
    tree: error_pb2.ExceptionTree, node: error_pb2.RemoteException, index: int, members: list[RemoteError]
) -> RemoteError:
    args = tuple(_decode(value, f"<a {value.WhichOneof('kind')} that can't be read here>") for value in node.args)
    for cls in candidates(node):
        try:
            error = _instance(cls, node, args, members)
            break
        except Exception:  # refused by the class' constructor, or by the class: what is next then
            continue
    else:
        error = _Rebuilt(node.message)
    fields = raw_dict(error)
    fields.update(
        _restored(error, node),
        tree=tree,
        worker=tree.worker,
        retryable=tree.retryable and index == 0,
        remote_type=f"{node.module}.{node.type}" if node.module else node.type,
        metadata={},
        retry_after=None,
        _origin=_Origin(node, index, _ARGS.__get__(error)),
    )
    if node.notes:
        fields["__notes__"] = list(node.notes)
    if node.members and not is_group(type(error)):
        fields["exceptions"] = tuple(members)
    return error


def _instance(
    cls: type[Exception] | None,
    node: error_pb2.RemoteException,
    args: tuple[object, ...],
    members: list[RemoteError],
) -> RemoteError:
    # A class' name must not have NULs.
    module, qualname = node.module.replace("\0", ""), node.type.replace("\0", "")
    if not qualname:
        module, qualname = RemoteError.__module__, RemoteError.__qualname__
    made = derive(cls, _Rebuilt, module, qualname)
    if cls is None or not is_group(cls):
        error = instantiate(made, args, ())
        _ARGS.__set__(error, args)  # an OSError keeps but two
        return error
    title = args[0] if args and isinstance(args[0], str) else node.message
    return instantiate(made, (title,), members or [_Rebuilt("the members of this group were left out")])


def _restored(error: RemoteError, node: error_pb2.RemoteException) -> dict[str, object]:
    """Gives slots and builtin classes' fields their values; returns the other attributes."""
    rest = {}
    for name, value in node.attributes.items():
        if name in _RESERVED or is_dunder(name):
            continue
        unreadable = object()
        attribute = _decode(value, unreadable)
        if attribute is unreadable:
            continue
        field = _field(type(error), name)
        if field is None:
            rest[name] = attribute
        else:
            attempt(None, field.__set__, error, attribute)
    return rest


def _field(cls: type, name: str) -> Any:
    """Finds a slot, or a field of a builtin class, that runs no code of anybody's when it is set."""
    for base in class_mro(cls):
        member = class_vars(base).get(name)
        if name in FIELDS.get(base, ()) or (type(member) is MemberDescriptorType and not is_builtin(base)):
            return member
    return None


def _decode(value: Any, default: object) -> object:
    return attempt(default, lambda: values.decode(value.SerializeToString()))
