"""TorchScript's type texts ↔ JIT types.

What PythonRpcHandler::parseTypeFromStr and jitCompilationUnit do (torch/csrc/distributed/rpc/python_rpc_handler.cpp),
with a difference: there the text goes to torch's own parser (torch/csrc/jit/frontend/script_type_parser.cpp), here no
compiler ever sees it. This module reads the text, and puts the type together from torch's classes:

    type  ←  name  |  name "[" type ("," type)* [","] "]"  |  "Tuple[()]"
    name  ←  identifier ("." identifier)*
"""

from __future__ import annotations

import difflib
import enum
import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tensorcall.v1 import handler_service_pb2
from tensorcall.wire.errors import UnknownType
from tensorcall.wire.limits import MAX_TYPE_TEXT_BYTES

if TYPE_CHECKING:
    from torch._C import JitType

# Deeper than anybody writes; a TorchType of this depth still fits protobuf's limit of 100 nested messages.
MAX_TYPE_DEPTH = 50

_C: Any = torch._C
_state: Any = torch.jit._state
_TOKEN = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)|\(\)|[\[\],]")
_SPACE = re.compile(r"[ \t]*")


@functools.cache
def _from_constant_text(name: str) -> JitType:
    """Has the compiler make a type that has no class in Python. Only ever called with names written in this module."""
    unit: Any = _C.CompilationUnit()
    unit.define(f"def f(x: {name}) -> None:\n  return None\n", lambda _: None)
    made: JitType = next(iter(unit.f.graph.inputs())).type()
    return made


# The names in TorchScript's own words, as in script_type_parser.cpp, and PyObject, which the handler adds.
_SIMPLE: dict[str, Callable[[], JitType]] = {
    "Tensor": _C.TensorType.get,
    "torch.Tensor": _C.TensorType.get,
    "int": _C.IntType.get,
    "float": _C.FloatType.get,
    "complex": _C.ComplexType.get,
    "bool": _C.BoolType.get,
    "str": _C.StringType.get,
    "number": _C.NumberType.get,
    "None": _C.NoneType.get,
    "NoneType": _C.NoneType.get,
    "Any": _C.AnyType.get,
    "Device": _C.DeviceObjType.get,
    "Stream": _C.StreamObjType.get,
    "Generator": _C._GeneratorType.get,
    "PyObject": _C.PyObjectType.get,
    # Types that torch gives Python no class for.
    "list": lambda: _from_constant_text("list"),
    "tuple": lambda: _from_constant_text("tuple"),
    "Capsule": lambda: _from_constant_text("Capsule"),
}


class _Generic(NamedTuple):
    make: Callable[[list[JitType]], JitType]
    # How many arguments it takes; None for any number.
    arity: int | None


_LIST, _DICT, _TUPLE = (
    _Generic(lambda a: _C.ListType(a[0]), 1),
    _Generic(lambda a: _C.DictType(a[0], a[1]), 2),
    _Generic(lambda a: _C.TupleType(a), None),
)
_FUTURE = _Generic(lambda a: _C.FutureType(a[0]), 1)
_GENERIC: dict[str, _Generic] = {
    "List": _LIST,
    "list": _LIST,
    "Dict": _DICT,
    "dict": _DICT,
    "Tuple": _TUPLE,
    "tuple": _TUPLE,
    "Optional": _Generic(lambda a: _C.OptionalType(a[0]), 1),
    "Union": _Generic(lambda a: _C.UnionType(a), None),
    "Future": _FUTURE,
    "torch.jit.Future": _FUTURE,
    "Await": _Generic(lambda a: _C.AwaitType(a[0]), 1),
    "RRef": _Generic(lambda a: _C.RRefType(a[0]), 1),
}

# JIT types whose contained types are what their text shows in brackets. A class contains the types of its attributes,
# which may contain the class.
_CONTAINERS = frozenset(
    {"ListType", "DictType", "TupleType", "OptionalType", "UnionType", "FutureType", "AwaitType", "RRefType"}
)


def jit_compilation_unit() -> torch._C.CompilationUnit:
    """Returns the compilation unit in which everything scripted from Python lives, torch's own `get_python_cu()`."""
    unit: torch._C.CompilationUnit = _state._python_cu
    return unit


def parse(text: str) -> JitType:
    """Reads a TorchScript type, in any form that `annotation_str` writes, named tuples excepted.

    Args:
        text: for example "Dict[str, Tensor]", "PyObject", or "__torch__.module.Class" for a class that was scripted
            in this process.

    Raises:
        UnknownType: it names none; the message says what is wrong and where.
    """
    return _Parser(text).parse()


def describe(type: JitType) -> handler_service_pb2.TorchType:
    """Tells a JIT type as a message."""
    return _describe(type, 0)


def _describe(type: Any, depth: int) -> handler_service_pb2.TorchType:
    kind: str = type.kind()
    # A named tuple is written by its name, like a class; deeper types than `parse` makes are cut.
    text: str = type.annotation_str
    contained = type.containedTypes() if kind in _CONTAINERS and depth < MAX_TYPE_DEPTH else []
    return handler_service_pb2.TorchType(
        kind=kind, text=text, arguments=[_describe(argument, depth + 1) for argument in contained]
    )


class _Parser:
    """Reads one text by recursive descent, each token once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        # Where the current token begins, for messages; the token itself, "" at the end; and whether it's a name.
        self._start = 0
        self._token = ""
        self._is_name = False

    def parse(self) -> JitType:
        # In characters first: encoding is work, too.
        if len(self._text) > MAX_TYPE_TEXT_BYTES:
            raise UnknownType(f"a type's text has at most {MAX_TYPE_TEXT_BYTES} bytes, this one {len(self._text)}")
        if not self._text.isascii():
            raise UnknownType(f"{_short(self._text)} is no TorchScript type: it has a character beyond ASCII")
        self._advance()
        result = self._type(0)
        if self._token:
            raise self._error("the type ends before this")
        return result

    def _advance(self) -> None:
        space = _SPACE.match(self._text, self._position)
        self._start = self._position if space is None else space.end()
        if self._start == len(self._text):
            self._token, self._is_name = "", False
            return
        match = _TOKEN.match(self._text, self._start)
        if match is None:
            raise self._error("types are written with names, dots, commas and square brackets")
        self._position = match.end()
        self._token, self._is_name = match.group(), match.group("name") is not None

    def _type(self, depth: int) -> JitType:
        if depth > MAX_TYPE_DEPTH:
            raise self._error(f"it nests deeper than {MAX_TYPE_DEPTH} levels")
        if not self._is_name:
            raise self._error("the name of a type is missing here")
        name, start = self._token, self._start
        self._advance()
        if self._token != "[":
            return self._simple(name, start)
        generic = _GENERIC.get(name)
        if generic is None:
            raise self._error(f"{_short(name)} is not known to take arguments" + _similar(name, _GENERIC), start)
        arguments = self._arguments(name, depth + 1)
        if generic.arity not in (None, len(arguments)):
            raise self._error(f"{name} takes {generic.arity} argument(s), not {len(arguments)}", start)
        try:
            return generic.make(arguments)
        except RuntimeError as error:
            # Such as a key that TorchScript's dict doesn't take. torch blames itself at length before it tells.
            reason = str(error).split("please report a bug to PyTorch.")[-1].strip().split("\n")[0]
            raise self._error(reason, start) from error

    def _arguments(self, name: str, depth: int) -> list[JitType]:
        self._advance()
        arguments = []
        if self._token == "()" and _GENERIC[name] is _TUPLE:
            self._advance()
        else:
            arguments.append(self._type(depth))
            while self._token == ",":
                self._advance()
                # TorchScript takes a comma after the last one.
                if self._token == "]":
                    break
                arguments.append(self._type(depth))
        if self._token != "]":
            raise self._error("a comma or a closing bracket is missing here")
        self._advance()
        return arguments

    def _simple(self, name: str, start: int) -> JitType:
        get = _SIMPLE.get(name)
        if get is not None:
            return get()
        if name in _GENERIC:
            raise self._error(f"{name} needs arguments in brackets", start)
        if name.startswith("__torch__."):
            found = _scripted(name)
            if found is None:
                raise self._error(f"no class {_short(name)} was scripted in this process", start)
            return found
        raise self._error(f"{_short(name)} is not known" + _similar(name, _SIMPLE), start)

    def _error(self, reason: str, start: int | None = None) -> UnknownType:
        start = self._start if start is None else start
        place = f" (at character {start + 1}: {_short(self._text[start:], 20)})" if start else ""
        return UnknownType(f"{_short(self._text)} is no TorchScript type: {reason}{place}")


def _short(text: str, length: int = 80) -> str:
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def _similar(name: str, known: dict[str, Any]) -> str:
    # By the last part, so that "torch.device" leads to "Device".
    found = difflib.get_close_matches(name.rpartition(".")[2][:40], known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _scripted(name: str) -> JitType | None:
    """Finds a class, enum or interface that was scripted, by its qualified name."""
    python_class = _state._get_python_class(name)
    if isinstance(python_class, enum.EnumMeta):
        members: list[enum.Enum] = list(python_class)
        # As torch.jit.annotations.get_enum_value_type: one type for all values, or Any.
        value_types = [_C._jit_try_infer_type(member.value).type() for member in members]
        enum_type: JitType = _C.EnumType(name, _C.unify_type_list(value_types) or _C.AnyType.get(), members)
        return enum_type
    unit: Any = jit_compilation_unit()
    found: JitType | None = unit.get_class(name) or unit.get_interface(name)
    return found
