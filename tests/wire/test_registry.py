import dataclasses
import datetime
import decimal
import enum
import pathlib
import subprocess
import sys
import uuid
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorcall.wire import registry
from tensorcall.wire.errors import BadPayload, Unencodable
from tensorcall.wire.registry import register

T = TypeVar("T")


def round_trip(obj: Any) -> Any:
    codec = registry.object_codec_for(type(obj))
    assert codec is not None
    assert registry.object_codec_named(codec.name) is codec
    return codec.from_fields(codec.to_fields(obj))


@pytest.fixture
def registered():
    """Registers classes for the time of one test."""
    classes: list[type] = []

    def add(cls: type, name: str | None = None) -> registry.ObjectCodec:
        register(cls, name=name)
        classes.append(cls)
        codec = registry.object_codec_for(cls)
        assert codec is not None
        return codec

    yield add
    for cls in classes:
        registry.unregister(cls)


def refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("code of the type ran")


@register
@dataclasses.dataclass
class Plain:
    a: int
    b: list[int] = dataclasses.field(default_factory=list)
    c: str = "c"
    shared: ClassVar[int] = 7


@register(name="shop.Frozen")
@dataclasses.dataclass(frozen=True)
class Frozen:
    a: object


@register
@dataclasses.dataclass(slots=True, frozen=True, kw_only=True)
class Slotted(Generic[T]):
    a: object
    b: object = None


@register
@dataclasses.dataclass
class Strict:
    a: int
    b: int = dataclasses.field(default=0, init=False)
    c: object = dataclasses.field(init=False)
    seed: dataclasses.InitVar[int] = 0

    __post_init__ = __setattr__ = __new__ = refuse


@register
class Point(NamedTuple):
    x: int
    y: int = 2


@register
class Color(enum.Enum):
    RED = 1
    GREEN = "g"
    CRIMSON = 1  # noqa: PIE796 an alias is meant


@register
class Mode(enum.Flag):
    A = 1
    B = 2
    C = 4
    AB = 3


@register
class Bits(enum.IntFlag):
    A = 1
    B = 8


def test_the_name_is_module_and_qualname_unless_given():
    codec = registry.object_codec_named(f"{__name__}.Plain")
    assert codec is not None
    assert codec.cls is Plain
    assert registry.object_codec_for(Frozen).name == "shop.Frozen"
    assert registry.enum_name(Color) == f"{__name__}.Color"
    assert registry.enum_named(f"{__name__}.Color") is Color
    assert registry.enum_named("shop.Frozen") is None
    assert registry.object_codec_named(f"{__name__}.Color") is None
    assert registry.object_codec_named("nobody.Knows") is None
    assert registry.object_codec_for(object) is None


@pytest.mark.parametrize("obj", [Plain(1, [2], "x"), Frozen([1]), Slotted(a=1), Point(3), Point(3, 4)], ids=repr)
def test_instances_arrive_exactly(obj):
    result = round_trip(obj)
    assert type(result) is type(obj)
    assert result == obj


def test_no_code_of_the_type_runs():
    codec = registry.object_codec_for(Strict)
    obj = codec.from_fields({"a": 1, "c": 3})
    assert (obj.a, obj.b, obj.c) == (1, 0, 3)
    assert vars(obj) == {"a": 1, "b": 0, "c": 3}
    with pytest.raises(BadPayload, match="'seed'"):
        codec.from_fields({"a": 1, "seed": 2})


def test_what_is_no_field_is_not_carried():
    obj = Plain(1)
    obj.extra = 2
    assert not hasattr(round_trip(obj), "extra")


def test_missing_fields_get_their_defaults_and_their_own_copies():
    codec = registry.object_codec_for(Plain)
    first, second = codec.from_fields({"a": 1}), codec.from_fields({"a": 1})
    assert first == Plain(1)
    assert first.b is not second.b
    assert registry.object_codec_for(Point).from_fields({"x": 1}) == Point(1, 2)


def test_a_field_that_was_never_set_arrives_unset():
    codec = registry.object_codec_for(Strict)
    obj = codec.from_fields({"a": 1})
    assert not hasattr(round_trip(obj), "c")
    broken = object.__new__(Plain)
    with pytest.raises(Unencodable, match="'a'"):
        registry.object_codec_for(Plain).to_fields(broken)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (Plain, {}, "lacks its field 'a'"),
        (Plain, {"a": 1, "z": 2, "y": 3}, "no field 'y', 'z'"),
        (Plain, {"a": 1, "__class__": int}, "no field '__class__'"),
        (Plain, {"a": 1, "shared": 2}, "no field 'shared'"),
        (Slotted, {"b": 1}, "lacks its field 'a'"),
        (Point, {"y": 1}, "lacks its field 'x'"),
        (Point, {"x": 1, "z": 1}, "no field 'z'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(cls, fields, message):
    with pytest.raises(BadPayload, match=message):
        registry.object_codec_for(cls).from_fields(fields)


def test_subclasses_are_not_meant():
    class Child(Plain):
        pass

    class ChildPoint(Point):
        pass

    assert registry.object_codec_for(Child) is None
    assert registry.object_codec_for(ChildPoint) is None


def test_a_named_tuple_with_code_of_its_own_is_rebuilt_without_it(registered):
    class Guarded(Point):
        __slots__ = ()
        __new__ = __iter__ = refuse

    codec = registered(Guarded)
    obj = codec.from_fields({"x": 5})
    assert type(obj) is Guarded
    assert codec.to_fields(obj) == {"x": 5, "y": 2}


def test_registering_again_does_nothing():
    assert register(Plain) is Plain


def test_two_classes_of_one_name_are_refused(registered):
    @dataclasses.dataclass
    class Other:
        a: int

    with pytest.raises(ValueError, match=r"registered as 'shop.Frozen' already.*unregister"):
        register(Other, name="shop.Frozen")
    with pytest.raises(ValueError, match=r"registered already, as .shop\.Frozen."):
        register(Frozen, name="shop.Colder")
    with pytest.raises(ValueError, match="kept for torch"):
        register(Other, name="torch.Size")
    with pytest.raises(ValueError, match="already"):
        register(Other, name="builtins.range")
    registered(Other, "shop.Other")
    assert registry.object_codec_for(Other).name == "shop.Other"


def test_unregister():
    @register(name="test.Cell")
    @dataclasses.dataclass
    class Cell:
        a: int

    registry.unregister(Cell)
    assert registry.object_codec_for(Cell) is None
    assert registry.object_codec_named("test.Cell") is None
    with pytest.raises(LookupError):
        registry.unregister(Cell)

    @register(name="test.Cell")
    class Cell(enum.Enum):
        A = 1

    assert registry.enum_named("test.Cell") is Cell
    registry.unregister(Cell)
    assert registry.enum_named("test.Cell") is None


class Ordinary:
    pass


class Undecorated(Plain):
    extra: int


@dataclasses.dataclass
class Failure(Exception):
    a: int


@dataclasses.dataclass
class Entries(dict):
    a: int


@dataclasses.dataclass
class Abstract(ABC):
    a: int

    @abstractmethod
    def act(self): ...


@dataclasses.dataclass
class WithProperty:
    a: int

    @property
    def a(self):
        return 1

    @a.setter
    def a(self, value):
        refuse()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Ordinary, "neither a dataclass nor"),
        (int, "neither a dataclass nor"),
        (ValueError, "exceptions travel by themselves"),
        (Undecorated, "only inherits"),
        (Failure, "also a Exception"),
        (Entries, "also a dict"),
        (Abstract, "abstract"),
        (WithProperty, "code would run"),
        (Ordinary(), "takes a class"),
        (refuse, "takes a class"),
    ],
)
def test_what_cannot_be_registered_gets_advice(cls, message):
    with pytest.raises(TypeError, match=message):
        register(cls)


# Enums.


@pytest.mark.parametrize(
    ("member", "name"),
    [
        (Color.RED, "RED"),
        (Color.GREEN, "GREEN"),
        (Color.CRIMSON, "RED"),
        (Mode.A | Mode.C, "A|C"),
        (Mode.AB, "AB"),
        (Mode(0), "0"),
        (Bits.A | Bits.B, "A|B"),
        (Bits(5), "A|4"),
        (Bits(4), "4"),
        (Bits(0), "0"),
    ],
)
def test_members_travel_by_name(member, name):
    assert registry.member_name(member) == name
    result = registry.enum_member(type(member), name)
    assert result == member
    assert type(result) is type(member)


def test_aliases_and_python_s_own_names_are_read():
    assert registry.enum_member(Color, "CRIMSON") is Color.RED
    assert registry.enum_member(Mode, "A|B") is Mode.AB
    assert registry.enum_member(Mode, "AB|C") == Mode(7)


@given(st.integers(0, 7))
def test_every_combination_of_flags_comes_back(value):
    assert registry.enum_member(Mode, registry.member_name(Mode(value))) == Mode(value)


@given(st.integers(0, 2**63))
def test_every_int_flag_comes_back(value):
    assert registry.enum_member(Bits, registry.member_name(Bits(value))) == Bits(value)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (Color, "BLUE"),
        (Color, ""),
        (Color, "1"),
        (Color, "RED|GREEN"),
        (Color, "__class__"),
        (Color, "name"),
        (Mode, "A|"),
        (Mode, "A|X"),
        (Mode, ""),
        (Mode, "8"),
        (Mode, "9" * 100),
        (Mode, "٣"),
    ],
)
def test_unknown_members_are_refused(cls, name):
    with pytest.raises(BadPayload, match="has no member"):
        registry.enum_member(cls, name)


# Types of the standard library and of torch.

UTC = datetime.timezone.utc
EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=45, seconds=1))
STANDARD = [
    range(0),
    range(5, -(10**30), -3),
    slice(None),
    slice(1, None, "x"),
    datetime.datetime(2024, 2, 29, 23, 59, 59, 1),
    datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=EAST),
    datetime.datetime.max.replace(tzinfo=UTC),
    datetime.date.min,
    datetime.time(1, 2, 3, 4, tzinfo=UTC, fold=1),
    datetime.timedelta.min,
    datetime.timedelta(days=-1, microseconds=5),
    decimal.Decimal("-0.0100"),
    decimal.Decimal("1E+999999"),
    decimal.Decimal("-Infinity"),
    uuid.UUID(int=5),
    pathlib.PurePosixPath("/a/../b"),
]


@pytest.mark.parametrize("obj", STANDARD, ids=repr)
def test_standard_types_arrive_exactly(obj):
    result = round_trip(obj)
    assert type(result) is type(obj)
    assert result == obj
    assert repr(result) == repr(obj)


def test_signalling_nan():
    assert str(round_trip(decimal.Decimal("sNaN123"))) == "sNaN123"


@given(
    st.datetimes(timezones=st.none() | st.timezones().map(lambda _: UTC)) | st.timedeltas() | st.times() | st.dates()
)
def test_moments_come_back(moment):
    assert round_trip(moment) == moment


def test_time_zones_with_rules_are_refused():
    class Zone(datetime.tzinfo):
        def utcoffset(self, when):
            return datetime.timedelta(0)

    with pytest.raises(Unencodable, match="astimezone"):
        round_trip(datetime.datetime(2024, 1, 1, tzinfo=Zone()))


IMPOSSIBLE = [
    ("builtins.range", {"start": 0, "stop": 1, "step": 0}),
    ("builtins.range", {"start": 0, "stop": 1}),
    ("builtins.range", {"start": 0, "stop": True, "step": 1}),
    ("builtins.range", {"start": 0, "stop": 1, "step": 1, "more": 1}),
    ("datetime.datetime", {"iso": "yesterday", "fold": 0}),
    ("datetime.datetime", {"iso": "2024-01-01", "fold": 2}),
    ("datetime.datetime", {"iso": 5, "fold": 0}),
    ("datetime.date", {"iso": "2023-02-29"}),
    ("datetime.time", {"iso": "25:00", "fold": 0}),
    ("datetime.timedelta", {"days": 10**30, "seconds": 0, "microseconds": 0}),
    ("decimal.Decimal", {"text": "one"}),
    ("decimal.Decimal", {}),
    ("uuid.UUID", {"hex": "xyz"}),
    ("pathlib.PurePosixPath", {"path": None}),
    ("torch.Size", {"sizes": 5}),
    ("torch.Size", {"sizes": [1.5]}),
    ("torch.Size", {"sizes": [2**64]}),
    ("torch.Size", {"sizes": [True]}),
    ("torch.dtype", {"name": "Tensor"}),
    ("torch.dtype", {"name": "compile"}),
    ("torch.dtype", {"name": "no_such"}),
    ("torch.device", {"type": "teapot"}),
    ("torch.device", {"type": "cpu:0", "index": 0}),
    ("torch.device", {"type": "cpu", "index": 10**30}),
    ("torch.return_types.max", {"values": 1}),
    ("torch.return_types.max", {"values": 1, "indices": 1, "others": 1}),
]


@pytest.mark.parametrize(("name", "fields"), IMPOSSIBLE)
def test_impossible_standard_values_are_refused(name, fields):
    pytest.importorskip("torch")
    with pytest.raises(BadPayload):
        registry.object_codec_named(name).from_fields(fields)


def test_torch_types_arrive_exactly():
    torch = pytest.importorskip("torch")
    dtypes = {obj for obj in vars(torch).values() if isinstance(obj, torch.dtype)}
    for obj in [torch.Size([]), torch.Size([2, 3]), torch.device("cpu"), torch.device("cuda", 1), *dtypes]:
        result = round_trip(obj)
        assert type(result) is type(obj)
        assert result == obj


def test_torch_s_results_with_names_arrive_as_such():
    torch = pytest.importorskip("torch")
    obj = torch.max(torch.tensor([[1.0, 5.0], [7.0, 3.0]]), 0)
    result = round_trip(obj)
    assert type(result) is torch.return_types.max
    assert torch.equal(result.values, obj.values)
    assert torch.equal(result.indices, obj.indices)


def test_torch_is_not_imported_and_found_when_somebody_did():
    pytest.importorskip("torch")
    code = """
import sys
from tensorcall.wire import registry
assert registry.object_codec_named("torch.Size") is None
assert "torch" not in sys.modules
import torch
assert registry.object_codec_named("torch.Size").cls is torch.Size
assert registry.object_codec_for(torch.dtype).name == "torch.dtype"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
