"""Exception classes by name, and instances of them, without running anybody's code.

A peer chooses the names. So nothing is imported, no `__getattr__` of a module is asked, and no `__new__`, `__init__`,
`__init_subclass__` or metaclass written in Python takes part.
"""

from __future__ import annotations

import builtins
import sys
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from tensorcall.v1 import error_pb2
from tensorcall.wire.errors import RemoteError, TensorcallError
from tensorcall.wire.texts import type_name

E = TypeVar("E", bound=type[BaseException])

# None on Python 3.10.
GROUP: Any = getattr(builtins, "ExceptionGroup", None)
BASE_GROUP: Any = getattr(builtins, "BaseExceptionGroup", None)
# Where a builtin exception keeps what its args do not tell. ImportError's name_from is left out: to suggest a spelling,
# Python imports the module that an ImportError with it names. AttributeError's obj may be anything.
FIELDS: dict[type, tuple[str, ...]] = {
    OSError: ("errno", "strerror", "filename", "filename2"),
    ImportError: ("msg", "name", "path"),
    SyntaxError: ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset", "print_file_and_line"),
    AttributeError: ("name",),
    NameError: ("name",),
}

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: not a class of the interpreter itself
# As C has them, since a class or a module may define its own: a lazy module's __dict__ imports it.
_VARS: Any = type.__dict__["__dict__"]
_BASE: Any = type.__dict__["__base__"]
_MRO: Any = type.__dict__["__mro__"]
_FLAGS: Any = type.__dict__["__flags__"]
_MODULE_VARS: Any = vars(ModuleType)["__dict__"]

_registered: dict[str, type[Exception]] = {}


# What from_tree never makes an instance of, whatever a peer says. Our own errors are about our own calls: the network
# that failed between the worker and a third server is not the network between us and the worker. And the other two
# would end the caller's loop, as PEP 479 says of a generator's.
_NEVER = (TensorcallError, StopIteration, StopAsyncIteration)


def register_exception(cls: E) -> E:
    """Makes a class known to from_tree, wherever it is defined; may decorate it.

    Classes of modules that are imported under their own name are known anyway. This serves those within functions, and
    those whose module has another name on the worker (then give the class that `__module__`).

    Raises:
        TypeError: it is no subclass of Exception: raised here it would interrupt, not report.
    """
    if not issubclass(cls, Exception):
        raise TypeError(f"{cls.__qualname__} is no subclass of Exception, so it always arrives as a RemoteError")
    _registered[".".join(type_name(cls))] = cls
    return cls


def class_vars(cls: type) -> MappingProxyType[str, Any]:
    """vars(cls), whatever its metaclass."""
    return _VARS.__get__(cls)  # type: ignore[no-any-return]


def class_mro(cls: type) -> tuple[type, ...]:
    """cls.__mro__, whatever its metaclass."""
    return _MRO.__get__(cls)  # type: ignore[no-any-return]


def is_builtin(cls: type) -> bool:
    """Whether the interpreter itself defines the class."""
    return not _FLAGS.__get__(cls) & _HEAP_TYPE


def known_bases(cls: type) -> list[str]:
    """Names the builtin and torch classes that a class derives from, nearest first."""
    names = (".".join(type_name(base)) for base in class_mro(cls)[1:] if issubclass(base, BaseException))
    universal = ("builtins.Exception", "builtins.BaseException")
    return [name for name in names if _is_known(name) and name not in universal]


def candidates(node: error_pb2.RemoteException) -> Iterator[type[Exception] | None]:
    """Finds what an exception may be an instance of, best first; None at last, for RemoteError alone."""
    found = [_find(node.module, node.type)]
    for name in filter(_is_known, node.bases):
        module, _, qualname = name.rpartition(".")
        found.append(_find(module, qualname))
    if node.members:
        # Whatever it was called there, `except*` is to look into it.
        found.append(GROUP)
    for cls in found:
        if cls is not None and (is_group(cls) or not node.members):
            yield cls
    yield None


def is_group(cls: type) -> bool:
    """Whether a class is one of exception groups; on Python 3.10 none is."""
    return BASE_GROUP is not None and issubclass(cls, BASE_GROUP)


def derive(cls: type[Exception] | None, face: type[RemoteError], module: str, qualname: str) -> type[RemoteError]:
    """Makes the class that is both `face` and `cls` and prints as the original.

    Raises:
        TypeError: the class can't be derived from.
    """
    meta = type(cls)
    takes_part = issubclass(meta, ABCMeta) or any(_own(meta, name) for name in ("mro", "__hash__", "__eq__"))
    if cls is not None and meta is not ABCMeta and takes_part:
        raise TypeError(f"the metaclass of {qualname} would run")
    made: type[RemoteError] = _derive(cls, face, module, qualname)  # type: ignore[arg-type]  # classes are hashable
    return made


def instantiate(cls: type[RemoteError], args: tuple[object, ...], members: Sequence[BaseException]) -> RemoteError:
    """Makes an instance by the constructor of the nearest class that the interpreter itself defines.

    Raises:
        Exception: that constructor refuses the arguments.
    """
    native: Any = cls
    while not is_builtin(native):
        native = _BASE.__get__(native)
    if native is BASE_GROUP:
        return native.__new__(cls, args[0], list(members))  # type: ignore[no-any-return]
    made: RemoteError = native.__new__(cls, *args)
    native.__init__(made, *args)
    return made


@lru_cache(1024)  # a peer may think of any number of names
def _derive(cls: Any, face: Any, module: str, qualname: str) -> type[RemoteError]:
    body: dict[str, Any] = {"__module__": module, "__qualname__": qualname}
    name = qualname.rpartition(".")[2]
    if cls is None:
        return type(name, (face,), body)
    if _own(cls, "__del__"):
        body["__del__"] = lambda self: None  # the instance lacks what __init__ made
    make: Any = ABCMeta if type(cls) is ABCMeta else type
    made: type[RemoteError] = make.__new__(type(cls), name, (face, cls), body)
    # TensorcallError's would hide it. `reason` of a UnicodeDecodeError or an SSLError is what it always was; set
    # afterwards, since `type` calls what is in the body (__set_name__).
    for base in class_mro(cls):
        if "reason" in class_vars(base):
            type.__setattr__(made, "reason", class_vars(base)["reason"])
            break
    return made


def _find(module: str, qualname: str) -> type[Exception] | None:
    """Finds a class that is registered or in a module that is imported already."""
    found: Any = _registered.get(f"{module}.{qualname}")
    if found is None:
        space: Any = sys.modules.get(module)
        if not issubclass(type(space), ModuleType):
            return None
        space = _MODULE_VARS.__get__(space)
        for part in qualname.split("."):
            found = space.get(part)
            # Not isinstance: it asks a proxy object for its __class__.
            if not issubclass(type(found), type):
                return None
            space = class_vars(found)
    # What interrupts must not be raised by a peer.
    if issubclass(found, _NEVER) or not issubclass(found, Exception):
        return None
    made: type[Exception] = found
    return made


def _is_known(name: str) -> bool:
    return name.startswith(("builtins.", "torch."))


def _own(cls: type, name: str) -> bool:
    """Whether a class, or a base of it that the interpreter doesn't define, has an attribute."""
    return any(name in class_vars(base) for base in class_mro(cls) if not is_builtin(base))
