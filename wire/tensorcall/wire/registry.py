"""Types that travel by name: as an ObjectValue (fields by name) or as an EnumMember. See value.proto.

Both sides register a type under one name. Nothing is ever imported because a peer named it, and no code of a type runs
when an instance is read.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import pathlib
import re
import sys
import threading
import types
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast, overload

from tensorcall.wire.errors import BadPayload, Unencodable

T = TypeVar("T", bound=type)


@dataclasses.dataclass(frozen=True, slots=True)
class ObjectCodec:
    """How the instances of one class travel."""

    name: str
    """What the class is called on the wire."""
    cls: type
    """The class itself; subclasses are not meant."""
    to_fields: Callable[[Any], dict[str, object]]
    """Takes an instance apart. Raises Unencodable if it isn't whole."""
    from_fields: Callable[[dict[str, Any]], Any]
    """Puts an instance together. Raises BadPayload if the fields don't fit."""


_codecs: dict[type, ObjectCodec] = {}
_enum_names: dict[type, str] = {}
# One space of names for both, so that a name says which type is meant whatever message it stands in.
_named: dict[str, ObjectCodec | type[enum.Enum]] = {}
# Guards changes. Readers go without: a dict is read atomically, and _named is written last.
_lock = threading.Lock()


@overload
def register(cls: T, *, name: str | None = None) -> T: ...
@overload
def register(cls: None = None, *, name: str | None = None) -> Callable[[T], T]: ...
def register(cls: T | None = None, *, name: str | None = None) -> T | Callable[[T], T]:
    """Lets the instances of a dataclass, NamedTuple or enum travel without pickle; to be called on both sides.

    A decorator, to stand above `@dataclass`: `@register` or `@register(name="shop.Order")`. Dataclasses arrive with
    exactly the fields that they left with; `__init__`, `__post_init__` and setters are not run.

    Args:
        cls: the class. Registering it again under the same name does nothing.
        name: what both sides call it; "module.qualname" if left out.

    Raises:
        TypeError: it is something else, or rebuilding it would have to run its code; the message advises.
        ValueError: the name belongs to another class, or the class has another name already.
    """
    if cls is None:
        return lambda cls: register(cls, name=name)
    if not isinstance(cls, type):
        raise TypeError(f"register() takes a class, not the {type(cls).__name__} {cls!r:.60}")
    if name is None:
        name = f"{cls.__module__}.{cls.__qualname__}"
    entry: ObjectCodec | type[enum.Enum]
    if issubclass(cls, enum.Enum):
        entry = cls
    elif "__dataclass_fields__" in vars(cls):
        entry = _dataclass_codec(name, cls)
    elif issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple):
        entry = _named_tuple_codec(name, cls)
    else:
        raise TypeError(_advice(cls))
    _add(name, cls, entry)
    return cls


def unregister(cls: type) -> None:
    """Takes a registration back, for example before a notebook's cell defines the class anew.

    Raises:
        LookupError: the class is not registered.
    """
    with _lock:
        codec = _codecs.pop(cls, None)
        name = codec.name if codec is not None else _enum_names.pop(cls, None)
        if name is None:
            raise LookupError(f"{cls.__module__}.{cls.__qualname__} is not registered")
        del _named[name]


def object_codec_for(cls: type) -> ObjectCodec | None:
    """Finds the codec of a class, not of its bases; None if it has none."""
    codec = _codecs.get(cls)
    if codec is None and not _torch_added and cls.__module__ in ("torch", "torch.return_types"):
        _add_torch()
        codec = _codecs.get(cls)
    return codec


def object_codec_named(name: str) -> ObjectCodec | None:
    """Finds the codec that has this name; None if there is none."""
    entry = _named.get(name)
    if entry is None and not _torch_added and name.startswith("torch."):
        _add_torch()
        entry = _named.get(name)
    return entry if isinstance(entry, ObjectCodec) else None


def enum_name(cls: type) -> str | None:
    """Finds the name under which an enum was registered; None if it was not."""
    return _enum_names.get(cls)


def enum_named(name: str) -> type[enum.Enum] | None:
    """Finds the enum that was registered under this name; None if there is none."""
    entry = _named.get(name)
    return None if isinstance(entry, ObjectCodec) else entry


def member_name(member: enum.Enum) -> str:
    """Names a member: "A"; for a combination of flags "A|B", bits that have no name as a number: "A|8", "0"."""
    members = type(member).__members__
    # Python names combinations differently from version to version, and 3.10 not at all.
    if member._name_ in members:
        return member._name_
    left: int = member._value_
    if left < 0:
        return str(left)
    parts = []
    for name, known in members.items():
        bits: int = known._value_
        if bits and bits & left == bits:
            parts.append(name)
            left &= ~bits
    if left or not parts:
        parts.append(str(left))
    return "|".join(parts)


def enum_member(cls: type[enum.Enum], name: str) -> enum.Enum:
    """Finds the member that `member_name` named.

    Raises:
        BadPayload: the enum has no such member.
    """
    members = cls.__members__
    if name in members:
        return members[name]
    if issubclass(cls, enum.Flag):
        value = 0
        for part in name.split("|"):
            if part in members:
                value |= members[part]._value_
            elif re.fullmatch(r"-?[0-9]{1,20}", part):
                value |= int(part)
            else:
                break
        else:
            try:
                found: Any = cls(value)
            except (ValueError, TypeError):
                found = None
            # Python remembers what somebody once made of it, past its own check: Enum's cache is asked first.
            strict = getattr(cls, "_boundary_", None) is getattr(enum, "STRICT", "")
            if found is not None and not (strict and found._value_ & ~cast(Any, cls)._flag_mask_):
                return cast(enum.Enum, found)
    raise BadPayload(f"{cls.__qualname__} has no member {name!r:.80}: it has {', '.join(members) or 'none'}")


def _add(name: str, cls: type, entry: ObjectCodec | type[enum.Enum]) -> None:
    with _lock:
        if name in _TORCH_NAMES and cls is not _torch_class(name):
            raise ValueError(f"the name {name} is kept for torch's own type")
        known = _named.get(name)
        holder = known.cls if isinstance(known, ObjectCodec) else known
        if holder is not None and holder is not cls:
            raise ValueError(
                f"{holder.__module__}.{holder.__qualname__} is registered as {name!r} already: give the other class "
                "a name of its own, or unregister() the first one if this is the same class defined anew"
            )
        codec = _codecs.get(cls)
        current = codec.name if codec is not None else _enum_names.get(cls)
        if current == name:
            return
        if current is not None:
            raise ValueError(f"{cls.__qualname__} is registered already, as {current!r}")
        if isinstance(entry, ObjectCodec):
            _codecs[cls] = entry
        else:
            _enum_names[cls] = name
        _named[name] = entry


def _advice(cls: type) -> str:
    name = f"{cls.__module__}.{cls.__qualname__}"
    if hasattr(cls, "__dataclass_fields__"):
        return f"{name} only inherits from a dataclass: decorate it with @dataclass, too, below @register"
    if issubclass(cls, BaseException):
        return f"{name} is an exception: exceptions travel by themselves, when raised"
    return (
        f"{name} is neither a dataclass nor a NamedTuple nor an enum: make it one (with @dataclass, @register "
        "stands above it), or send its data as a dict"
    )


# What the class is made of: dataclasses and named tuples.


def _check_fields(values: Mapping[str, object], names: frozenset[str], type_name: str) -> None:
    unknown = values.keys() - names
    if unknown:
        raise BadPayload(
            f"{type_name} has no field {', '.join(map(repr, sorted(unknown)))}: it has {', '.join(sorted(names))}; "
            "do both sides run the same version of it?"
        )


def _dataclass_codec(type_name: str, cls: type) -> ObjectCodec:
    fields = dataclasses.fields(cls)
    names = frozenset(field.name for field in fields)
    optional = frozenset(field.name for field in fields if not field.init)
    _check_rebuildable(cls, names)
    defaults: dict[str, Callable[[], object]] = {}
    for field in fields:
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = functools.partial(_same, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory
    in_order = tuple(field.name for field in fields)

    def to_fields(obj: Any) -> dict[str, object]:
        values = {}
        for name in in_order:
            try:
                values[name] = getattr(obj, name)
            except AttributeError:
                # One with init=False may never have been set; it arrives as unset as it is here.
                if name not in optional:
                    raise Unencodable(f"the field {name!r} of this {cls.__qualname__} is not set") from None
        return values

    def from_fields(values: dict[str, Any]) -> Any:
        _check_fields(values, names, type_name)
        obj: Any = object.__new__(cls)
        for name in in_order:
            if name in values:
                value = values[name]
            elif name in defaults:
                value = defaults[name]()
            elif name in optional:
                continue
            else:
                raise BadPayload(f"{type_name} lacks its field {name!r}, which has no default")
            # Also for frozen classes, and without a __setattr__ of the type.
            object.__setattr__(obj, name, value)
        return obj

    return ObjectCodec(type_name, cls, to_fields, from_fields)


def _same(value: object) -> object:
    return value


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement


def _check_rebuildable(cls: type, names: frozenset[str]) -> None:
    """Refuses a dataclass that object.__new__ and object.__setattr__ can't rebuild, or not without its code."""
    for base in cls.__mro__[:-1]:
        if not base.__flags__ & _HEAP_TYPE:
            raise TypeError(f"{cls.__qualname__} is also a {base.__name__}, whose content is not in its fields")
    if inspect.isabstract(cls):
        raise TypeError(f"{cls.__qualname__} is abstract: register the classes that derive from it")
    for name in sorted(names):
        attribute = inspect.getattr_static(cls, name, None)
        if hasattr(type(attribute), "__set__") and not isinstance(attribute, types.MemberDescriptorType):
            raise TypeError(f"the field {name!r} of {cls.__qualname__} is a {type(attribute).__name__}: code would run")


def _named_tuple_codec(type_name: str, cls: Any) -> ObjectCodec:
    in_order: tuple[str, ...] = cls._fields
    names = frozenset(in_order)
    defaults: dict[str, object] = getattr(cls, "_field_defaults", {})

    def to_fields(obj: Any) -> dict[str, object]:
        return dict(zip(in_order, tuple.__iter__(obj), strict=True))

    def from_fields(values: dict[str, Any]) -> Any:
        _check_fields(values, names, type_name)
        values = {**defaults, **values}
        for name in in_order:
            if name not in values:
                raise BadPayload(f"{type_name} lacks its field {name!r}, which has no default")
        return tuple.__new__(cls, [values[name] for name in in_order])

    return ObjectCodec(type_name, cls, to_fields, from_fields)


# Types of the standard library and of torch: a table.

_INT, _STR, _ANY = (int,), (str,), (object,)
_MAYBE_INT, _MAYBE_ANY = (int, type(None)), (object, type(None))


def _builtin(
    name: str,
    cls: type,
    kinds: Mapping[str, tuple[type, ...]],
    to_fields: Callable[[Any], dict[str, object]],
    make: Callable[..., object],
) -> ObjectCodec:
    """Makes a codec out of one row.

    Args:
        name: the name on the wire.
        cls: the class.
        kinds: the exact types that each field may have; `object` for any. One that may be None may be left out.
        to_fields: takes an instance apart.
        make: puts it together from fields that have been checked against `kinds`.
    """
    names = frozenset(kinds)

    def from_fields(values: dict[str, Any]) -> object:
        _check_fields(values, names, name)
        complete = {}
        for field, allowed in kinds.items():
            if field not in values and type(None) not in allowed:
                raise BadPayload(f"{name} lacks its field {field!r}")
            value = complete[field] = values.get(field)
            if type(value) not in allowed and object not in allowed:
                wanted = " or ".join(kind.__name__ for kind in allowed)
                raise BadPayload(f"the field {field!r} of {name} is a {type(value).__name__}, not a {wanted}")
        try:
            return make(**complete)
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            raise BadPayload(f"no {name} can be made of {complete!r:.200}: {str(error) or repr(error):.200}") from error

    return ObjectCodec(name, cls, to_fields, from_fields)


def _moment(obj: Any) -> dict[str, object]:
    # Other tzinfo classes hold rules, not an offset. A fixed offset's own name is not carried.
    if obj.tzinfo is not None and type(obj.tzinfo) is not datetime.timezone:
        raise Unencodable(
            f"a {type(obj).__name__} with the time zone {obj.tzinfo!r:.60} has no form on the wire: convert it with "
            "astimezone(datetime.timezone.utc)"
        )
    return {"iso": obj.isoformat(), "fold": obj.fold}


_BUILTINS = [
    _builtin(
        "builtins.range",
        range,
        {"start": _INT, "stop": _INT, "step": _INT},
        lambda obj: {"start": obj.start, "stop": obj.stop, "step": obj.step},
        lambda start, stop, step: range(start, stop, step),
    ),
    _builtin(
        "builtins.slice",
        slice,
        {"start": _MAYBE_ANY, "stop": _MAYBE_ANY, "step": _MAYBE_ANY},
        lambda obj: {"start": obj.start, "stop": obj.stop, "step": obj.step},
        lambda start, stop, step: slice(start, stop, step),
    ),
    _builtin(
        "datetime.datetime",
        datetime.datetime,
        {"iso": _STR, "fold": _INT},
        _moment,
        lambda iso, fold: datetime.datetime.fromisoformat(iso).replace(fold=fold),
    ),
    _builtin(
        "datetime.time",
        datetime.time,
        {"iso": _STR, "fold": _INT},
        _moment,
        lambda iso, fold: datetime.time.fromisoformat(iso).replace(fold=fold),
    ),
    _builtin(
        "datetime.date",
        datetime.date,
        {"iso": _STR},
        lambda obj: {"iso": obj.isoformat()},
        lambda iso: datetime.date.fromisoformat(iso),
    ),
    _builtin(
        "datetime.timedelta",
        datetime.timedelta,
        {"days": _INT, "seconds": _INT, "microseconds": _INT},
        lambda obj: {"days": obj.days, "seconds": obj.seconds, "microseconds": obj.microseconds},
        datetime.timedelta,
    ),
    _builtin(
        "decimal.Decimal",
        decimal.Decimal,
        {"text": _STR},
        lambda obj: {"text": str(obj)},
        lambda text: decimal.Decimal(text),
    ),
    _builtin("uuid.UUID", uuid.UUID, {"hex": _STR}, lambda obj: {"hex": obj.hex}, uuid.UUID),
    _builtin(
        "pathlib.PurePosixPath",
        pathlib.PurePosixPath,
        {"path": _STR},
        lambda obj: {"path": str(obj)},
        lambda path: pathlib.PurePosixPath(path),
    ),
]

_TORCH_NAMES = frozenset({"torch.Size", "torch.dtype", "torch.device"})
_torch_added = False


def _torch_class(name: str) -> object:
    return getattr(sys.modules.get("torch"), name.removeprefix("torch."), None)


def _add_torch() -> None:
    """Adds torch's types if somebody else has imported torch; until then nobody can hold one."""
    global _torch_added
    torch: Any = sys.modules.get("torch")
    # While another thread is still importing torch, its return_types (made last) may be missing: then next time.
    if torch is None or not hasattr(torch, "return_types"):
        return

    def dtype(name: str) -> object:
        # Not getattr, which would import what torch offers lazily.
        found = vars(torch).get(name)
        if not isinstance(found, torch.dtype):
            raise ValueError("torch has no such dtype")
        return found

    def size(sizes: list[object]) -> object:
        if any(type(item) is not int or item.bit_length() > 63 for item in sizes):
            raise ValueError("sizes are ints of 64 bits")
        return torch.Size(sizes)

    rows = [
        _builtin(
            "torch.Size",
            torch.Size,
            {"sizes": (list, tuple)},
            lambda obj: {"sizes": list(obj)},
            size,
        ),
        _builtin(
            "torch.dtype",
            torch.dtype,
            {"name": _STR},
            lambda obj: {"name": str(obj).removeprefix("torch.")},
            dtype,
        ),
        _builtin(
            "torch.device",
            torch.device,
            {"type": _STR, "index": _MAYBE_INT},
            lambda obj: {"type": obj.type, "index": obj.index},
            lambda type, index: torch.device(type) if index is None else torch.device(type, index),
        ),
    ]
    # What torch.max(x, 0), torch.sort, torch.linalg.svd and their like return.
    rows += [
        _struct_sequence_codec(cls)
        for cls in vars(torch.return_types).values()
        if isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "n_sequence_fields")
    ]
    for row in rows:
        _add(row.name, row.cls, row)
    _torch_added = True


def _struct_sequence_codec(cls: Any) -> ObjectCodec:
    in_order: tuple[str, ...] = cls.__match_args__
    return _builtin(
        f"{cls.__module__}.{cls.__qualname__}",
        cls,
        dict.fromkeys(in_order, _ANY),
        lambda obj: dict(zip(in_order, obj, strict=True)),
        lambda **values: cls([values[name] for name in in_order]),
    )


for _row in _BUILTINS:
    _add(_row.name, _row.cls, _row)
