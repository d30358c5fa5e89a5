from __future__ import annotations

import collections
import dataclasses
import decimal
import enum
import json
import random
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from support.messages import FIXED64, LENGTH, VARINT, damaged, field, messages, rewritten, split, varint
from support.objects import OBJECTS
from support.reference import Impossible, exact, object_of, value_of

from tensorcall.v1.value_pb2 import ComplexValue, EnumMember, ListValue, MapValue, ObjectValue, Pair, PairsValue, Value
from tensorcall.wire import register, registry, values
from tensorcall.wire.errors import BadPayload, TooLarge, Unencodable
from tensorcall.wire.limits import MAX_BIG_INT_BYTES, MAX_DEPTH, MAX_VALUES
from tensorcall.wire.rrefs import RRefId
from tensorcall.wire.tensors import TensorReader, TensorWriter

quick = settings(deadline=None, max_examples=200)

# Types go by name; these are not registered in these.
ANY_VALUE = messages(Value, without={"tensorcall.v1.Value.object", "tensorcall.v1.Value.enum_member"})


def trip(obj: Any) -> Any:
    writer = TensorWriter()
    data = values.encode(obj, writer)
    return values.decode(data, TensorReader(writer.blobs))


def refused(data: bytes) -> bool:
    try:
        values.decode(data)
    except BadPayload:
        return True
    return False


# --- registered types ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: float
    y: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    items: Any


class Row(NamedTuple):
    a: int
    b: Any = None


class Color(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    SMALL = 1


class Name(str):
    pass


class Fussy:
    """A default that fails, as the receiver's own code may."""

    def __init__(self) -> None:
        raise ZeroDivisionError("no default today")


@dataclasses.dataclass
class Failing:
    fussy: Fussy = dataclasses.field(default_factory=Fussy)


@dataclasses.dataclass(frozen=True)
class BadHash:
    x: int = 0

    def __hash__(self) -> int:
        raise ZeroDivisionError("no hash today")


REGISTERED = [Point, Frozen, Row, Color, Failing, BadHash]


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    for cls in REGISTERED:
        register(cls, name=f"tests.{cls.__name__}")
    yield
    for cls in REGISTERED:
        registry.unregister(cls)


# --- as the generated classes ----------------------------------------------------------------------------------------


def sorted_maps(obj: Any) -> Any:
    """The same with the keys of maps in the order in which protobuf's deterministic form has them."""
    if type(obj) is dict:
        names = list(obj)
        if all(type(name) is str for name in names):
            data = MapValue(fields=dict.fromkeys(names, Value())).SerializeToString(deterministic=True)
            names = [split(entry)[0][2].decode() for _, _, entry in split(data)]
        return {name: sorted_maps(obj[name]) for name in names}
    return type(obj)(map(sorted_maps, obj)) if type(obj) in (list, tuple) else obj


@quick
@given(OBJECTS)
def test_written_as_by_the_generated_classes_byte_for_byte(obj: Any) -> None:
    obj = sorted_maps(obj)
    assert values.encode(obj) == value_of(obj).SerializeToString(deterministic=True)


@quick
@given(OBJECTS)
def test_dicts_keep_their_order_on_the_wire(obj: Any) -> None:
    """Where the generated classes sort or shuffle."""
    data = values.encode(obj)
    # Compared in bytes, since NaN is not NaN.
    again = Value.FromString(data).SerializeToString(deterministic=True)
    assert again == value_of(obj).SerializeToString(deterministic=True)
    assert exact(values.decode(data)) == exact(obj)


@quick
@given(st.data())
def test_read_however_it_is_written(data: st.DataObject) -> None:
    message = data.draw(ANY_VALUE)
    written = data.draw(rewritten(message.DESCRIPTOR, message.SerializeToString()))
    try:
        expected = object_of(message)
    except Impossible:
        assert refused(written)
    else:
        # The order of a map is not that of the message in the generated classes.
        assert exact(in_order(values.decode(written))) == exact(in_order(expected))


def in_order(obj: Any) -> Any:
    if type(obj) is dict and all(type(name) is str for name in obj):
        return {name: in_order(obj[name]) for name in sorted(obj)}
    if type(obj) is dict:
        return {name: in_order(item) for name, item in obj.items()}
    return type(obj)(map(in_order, obj)) if type(obj) in (list, tuple) else obj


@settings(deadline=None, max_examples=100)
@given(messages(Value))
def test_any_value_is_read_or_refused(message: Value) -> None:
    refused(message.SerializeToString())


# --- numbers ---------------------------------------------------------------------------------------------------------

EDGES = sorted(
    {
        sign * 2**power + delta
        for power in (0, 7, 8, 15, 31, 32, 53, 62, 63, 64, 65, 71, 72, 127, 128, 1000)
        for delta in (-1, 0, 1)
        for sign in (1, -1)
    }
)


@pytest.mark.parametrize("n", EDGES)
def test_integers_of_any_size(n: int) -> None:
    assert trip(n) == n
    message = Value.FromString(values.encode(n))
    assert message == value_of(n)
    # java.math.BigInteger.toByteArray: no byte more than the sign needs.
    body = message.big_int
    assert message.WhichOneof("kind") == ("int" if -(2**63) <= n < 2**63 else "big_int")
    if body:
        assert int.from_bytes(body, "big", signed=True) == n
        assert len(body) == n.bit_length() // 8 + 1 or (n < 0 and len(body) == (n + 1).bit_length() // 8 + 1)
        assert not (body[0] == 0 and body[1] < 128)
        assert not (body[0] == 255 and body[1] >= 128)


@pytest.mark.parametrize(("body", "n"), [(b"", 0), (b"\0\0\1", 1), (b"\xff\xff", -1), (b"\x7f", 127)])
def test_big_integers_need_be_neither_big_nor_short(body: bytes, n: int) -> None:
    assert values.decode(Value(big_int=body).SerializeToString()) == n


def test_integers_that_are_too_big() -> None:
    largest = (1 << (8 * MAX_BIG_INT_BYTES - 1)) - 1
    assert trip(largest) == largest
    assert trip(-largest - 1) == -largest - 1
    for n in (largest + 1, -largest - 2):
        with pytest.raises(TooLarge, match="1048577 bytes"):
            values.encode(n)
    with pytest.raises(TooLarge, match="1048577 bytes"):
        values.decode(Value(big_int=b"\1" * (MAX_BIG_INT_BYTES + 1)).SerializeToString())


@pytest.mark.parametrize(
    "bits", [0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000001, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 1]
)
def test_every_bit_of_a_float_arrives(bits: int) -> None:
    x = struct.unpack("<d", struct.pack("<Q", bits))[0]
    for obj in (x, [x], complex(x, -x), complex(-x, x), {x: 1}):
        assert exact(trip(obj)) == exact(obj)
    assert values.encode(complex(x, 0.0)) == value_of(complex(x, 0.0)).SerializeToString()


def test_a_bool_is_no_int_and_an_int_no_float() -> None:
    assert exact(trip([True, 1, 1.0, False, 0, 0.0])) == exact([True, 1, 1.0, False, 0, 0.0])
    assert exact(trip({True: 1, 0: False})) == exact({True: 1, 0: False})


# --- containers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "obj",
    [
        {},
        {"": None},
        {1: "a", "1": "b", (1, ("x", frozenset({2}))): "c", None: "d", b"1": "e", 2.5: "f"},
        {"z": 1, "a": 2, "m": {"z": 1, "a": 2}},
        {("a",): [set(), frozenset(), (), [], {}]},
        [bytearray(b"ab"), b"ab", "ab"],
        [[[]], ((),), {"a": {"b": {}}}],
        "\0é€😀",
        {"x" * 200: "y" * 20000},
        [list(range(200)), b"x" * 127, b"x" * 128, b"x" * 16384],
        RRefId("worker", 2**64 - 1, 2**64 - 1),
        decimal.Decimal("1.50"),
        slice(1, None, 2),
    ],
    ids=lambda obj: repr(obj)[:30],
)
def test_exact_types_come_back(obj: Any) -> None:
    assert exact(trip(obj)) == exact(obj)


def test_registered_types_come_back() -> None:
    obj = [Point(1.0, [Row(1, Color.RED), Row(2)]), {Frozen((1, 2)): Color.RED}, {Row(3): 1}]
    assert exact(trip(obj)) == exact(obj)
    assert Value.FromString(values.encode(Row(1))) == Value(
        object=ObjectValue(type="tests.Row", fields={"a": Value(int=1), "b": Value(null=0)})
    )
    assert Value.FromString(values.encode(Color.RED)) == Value(enum_member=EnumMember(type="tests.Color", name="RED"))


def test_tensors_and_arrays_stand_anywhere() -> None:
    tensor, array = torch.arange(3.0), np.arange(4, dtype=">i2")
    obj = {"t": [tensor, Point(1.0, array)], "scalar": np.float32(1.5), 3: torch.ones(0)}
    made = trip(obj)
    assert exact(made) == exact(obj)
    assert made["t"][0] is not tensor


def test_a_tensor_named_twice_travels_once_and_arrives_as_one() -> None:
    tensor = torch.ones(1000)
    obj = [tensor, (tensor,), {"t": tensor}, {1: tensor}, Point(0.0, tensor)]
    writer = TensorWriter()
    data = values.encode(obj, writer)
    assert len(data) < 200
    assert len(writer.blobs) == 1
    first, (second,), third, fourth, fifth = values.decode(data, TensorReader(writer.blobs))
    assert first is second is third["t"] is fourth[1] is fifth.y


def test_other_objects_named_twice_arrive_as_two() -> None:
    inner = [1]
    first, second = trip([inner, inner])
    assert first == second
    assert first is not second


def test_without_a_table_tensors_are_refused() -> None:
    with pytest.raises(Unencodable, match=r"\[0\]: a Tensor can't stand here"):
        values.encode([torch.ones(1)])
    with pytest.raises(BadPayload, match="tensor 3 is named"):
        values.decode(Value(tensor=3).SerializeToString())


# --- refused by the encoder ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Stranger:
    x: int = 0


class Flags(enum.Flag):
    A = 1


Pair_ = collections.namedtuple("Pair_", "a b")


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (Size.SMALL, r"Size is a subclass of int and would arrive as a plain int: convert it with int\(…\), or regis"),
        (Name("x"), r"Name is a subclass of str .* convert it with str\(…\)"),
        (collections.OrderedDict(a=1), r"OrderedDict is a subclass of dict .* convert it with dict\(…\)"),
        (collections.Counter("a"), "Counter is a subclass of dict"),
        (Pair_(1, 2), r"Pair_ is a subclass of tuple .* or register its class"),
        (Stranger(), r"Stranger is not registered: decorate the class with @tensorcall.wire.register on both sides"),
        (Flags.A, "Flags is not registered"),
        (object(), "builtins.object has no form on the wire: send the data it consists of"),
        (lambda: 0, "builtins.function has no form on the wire"),
        (Stranger, "builtins.type has no form on the wire"),
        (iter([]), "list_iterator has no form"),
        (memoryview(b"a"), "builtins.memoryview has no form"),
        ("a\ud800", "lone surrogate at 1, which UTF-8 can't hold: send bytes instead"),
        (RRefId("a", -1, 0), "64 bits"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_lose_its_type_is_refused_with_advice(obj: Any, message: str) -> None:
    for outer, place in [(obj, ""), ([0, obj], r"\[1\]: "), ({"k": (obj,)}, r"\['k'\]\[0\]: ")]:
        with pytest.raises(Unencodable, match=f"^{place}.*{message}"):
            values.encode(outer)


def encode_call(*args: Any, **kwargs: Any) -> list[bytes]:
    return values.encode_arguments(b"\x22", args, b"\x2a", kwargs, TensorWriter())


@pytest.mark.parametrize(
    ("obj", "place"),
    [
        ([1, 2, 3, {"k": object()}], r"[3]['k']"),
        ({(1, 2): {3: object()}}, r"[(1, 2)][3]"),
        ({object: 1}, r"[<class 'object'>]"),
        (Point(1.0, [object()]), r".y[0]"),
        ({"a" * 100: object()}, "['" + "a" * 59 + "]"),
        ({"a\ud800": 1}, r"['a\ud800']"),
        ({1 << 20000: object()}, "[a int]"),
    ],
)
def test_an_error_says_where(obj: Any, place: str) -> None:
    with pytest.raises(Unencodable) as caught:
        values.encode(obj)
    assert str(caught.value).startswith(f"{place}: ")
    with pytest.raises(Unencodable) as caught:
        encode_call(1, x=obj)
    assert str(caught.value).startswith(f"argument 'x'{place}: ")
    with pytest.raises(Unencodable) as caught:
        encode_call(1, obj, x=1)
    assert str(caught.value).startswith(f"argument 1{place}: ")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(Unencodable, match="surrogate"):
        encode_call(**{"\ud800": 1})


@pytest.mark.parametrize("make", [lambda x: [x], lambda x: (x,), lambda x: {"k": x}, lambda x: {1: x}, Point, Frozen])
def test_what_nests_too_deep_is_refused(make: Any) -> None:
    obj: Any = 1
    for _ in range(MAX_DEPTH):
        obj = make(obj)
    if make is not Point:  # whose first field is the deep one, too
        assert type(trip(obj)) is type(obj)
    for _ in range(10_000 - MAX_DEPTH):
        obj = make(obj)
    with pytest.raises(TooLarge, match="nests deeper than 100 levels") as caught:
        values.encode(obj)
    assert len(str(caught.value)) < 400


def test_what_contains_itself_is_refused() -> None:
    items: list[Any] = []
    items += [1, {"again": items}]
    with pytest.raises(TooLarge, match=r"^\[1\]\['again'\]\[1\].*….*: nests deeper .* \(does it contain itself\?\)"):
        values.encode(items)
    with pytest.raises(TooLarge, match=r"^argument 0\[1\]\['again'\]"):
        encode_call(items)


MANY: list[Any] = [0] * MAX_VALUES


@pytest.mark.parametrize(
    "obj",
    [MANY, [MANY], tuple(MANY), [MANY[: MAX_VALUES // 2]] * 2, {"k": MANY}, {1: MANY}, dict.fromkeys(range(2**19))],
    ids=range(7),
)
def test_too_many_values_are_refused(obj: Any) -> None:
    with pytest.raises(TooLarge, match="more than 1,048,576 values"):
        values.encode(obj)
    with pytest.raises(TooLarge, match="more than 1,048,576 values"):
        encode_call(0, x=obj)


def test_ten_million_values_are_refused_before_any_is_written() -> None:
    start = time.process_time()
    with pytest.raises(TooLarge, match="more than 1,048,576 values"):
        values.encode([object()] * 10**7)
    assert time.process_time() - start < 1


def test_as_many_values_as_allowed_are_sent_and_read() -> None:
    """Both sides count the same."""
    obj = MANY[:-1]
    assert values.decode(values.encode(obj)) == obj
    obj = {1: MANY[:-5], 2: 3}
    assert values.decode(values.encode(obj)) == obj
    with pytest.raises(TooLarge):
        values.encode({1: MANY[:-4], 2: 3})
    with pytest.raises(TooLarge):
        encode_call(*MANY, 1)
    assert len(encode_call(*MANY[:1000])) == 1000


# --- refused by the decoder ------------------------------------------------------------------------------------------

ONE = Value(int=1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Value(), "no kind that this side knows"),
        (Value(list=ListValue(items=[ONE, Value()])), "no kind that this side knows"),
        (Value(set=ListValue(items=[Value(list=ListValue())])), "a key of a set can't be hashed"),
        (Value(frozenset=ListValue(items=[Value(map=MapValue())])), "a key of a frozenset can't be hashed"),
        (Value(pairs=PairsValue(items=[Pair(key=Value(list=ListValue()), value=ONE)])), "key of a dict can't be hash"),
        (
            Value(
                pairs=PairsValue(items=[Pair(key=Value(tuple=ListValue(items=[Value(set=ListValue())])), value=ONE)])
            ),
            "use a tuple, not a list",
        ),
        (Value(pairs=PairsValue(items=[Pair(key=ONE)])), "no kind"),
        (Value(pairs=PairsValue(items=[Pair(value=ONE)])), "no kind"),
        (Value(object=ObjectValue(type="os.system")), "no type is registered as 'os.system' on this side"),
        (Value(object=ObjectValue()), "no type is registered as ''"),
        (Value(object=ObjectValue(type="tests.Color")), "no type is registered as 'tests.Color'"),
        (Value(object=ObjectValue(type="tests.Point", fields={"z": ONE})), "no field 'z'"),
        (Value(object=ObjectValue(type="tests.Point")), "lacks its field 'x'"),
        (Value(object=ObjectValue(type="tests.Failing")), "no tests.Failing can be made .* ZeroDivisionError: no def"),
        (
            Value(set=ListValue(items=[Value(object=ObjectValue(type="tests.BadHash"))])),
            r"can't be hashed \(no hash today\)",
        ),
        (Value(enum_member=EnumMember(type="tests.Point", name="RED")), "no enum is registered as 'tests.Point'"),
        (Value(enum_member=EnumMember(type="tests.Color", name="BLUE")), "no member 'BLUE'"),
        (
            Value(object=ObjectValue(type="builtins.range", fields={"start": ONE, "stop": ONE})),
            "lacks its field 'step'",
        ),
        (
            Value(
                object=ObjectValue(
                    type="builtins.range",
                    fields={"start": Value(big_int=b"\1" * 9000), "stop": ONE, "step": Value(int=0)},
                )
            ),
            "no builtins.range can be made",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_impossible_values_are_refused(value: Value, message: str) -> None:
    with pytest.raises(BadPayload, match=message):
        values.decode(value.SerializeToString())


@pytest.mark.parametrize(
    "body", [field(6, LENGTH, b"a\xff"), field(10, LENGTH, field(1, LENGTH, field(1, LENGTH, b"\xff")))]
)
def test_text_that_is_not_utf8_is_refused(body: bytes) -> None:
    with pytest.raises(BadPayload, match="not UTF-8"):
        values.decode(body)


def test_a_newer_kind_is_not_taken_for_none() -> None:
    with pytest.raises(BadPayload, match="update this side if the other is newer"):
        values.decode(field(99, LENGTH, b"new"))


@pytest.mark.parametrize("kind", ["list", "tuple", "map", "pairs", "key", "object", "set"])
def test_hostile_nesting_is_refused(kind: str) -> None:
    wrap = {
        "list": lambda body: field(8, LENGTH, field(1, LENGTH, body)),
        "tuple": lambda body: field(9, LENGTH, field(1, LENGTH, body)),
        "set": lambda body: field(18, LENGTH, field(1, LENGTH, body)),
        "map": lambda body: field(10, LENGTH, field(1, LENGTH, field(2, LENGTH, body))),
        "pairs": lambda body: field(
            11, LENGTH, field(1, LENGTH, field(1, LENGTH, value_of(1).SerializeToString()) + field(2, LENGTH, body))
        ),
        "key": lambda body: field(
            11, LENGTH, field(1, LENGTH, field(2, LENGTH, value_of(1).SerializeToString()) + field(1, LENGTH, body))
        ),
        "object": lambda body: field(
            14,
            LENGTH,
            field(1, LENGTH, b"tests.Frozen") + field(2, LENGTH, field(1, LENGTH, b"items") + field(2, LENGTH, body)),
        ),
    }[kind]
    body = values.encode(None)
    for depth in range(10_000):
        if depth == MAX_DEPTH and kind not in ("key",):
            values.decode(body)
        body = wrap(body)
    with pytest.raises(TooLarge, match="nests deeper than 100 levels"):
        values.decode(body)


# In a process of its own, whose memory is limited: what is refused must not be built first.
HOSTILE = {
    "ten million integers": 'values.decode(field(8, b"\\x0a\\2\\x18\\2" * 10**7))',
    "ten million sets": 'values.decode(field(8, b"\\x0a\\3\\x8a\\1\\0" * 10**7))',
    "ten million entries": 'values.decode(field(10, b"\\x0a\\4\\x12\\2\\x18\\2" * 10**7))',
    "ten million pairs": 'values.decode(field(11, b"\\x0a\\0" * 10**7))',
    "a million kinds of one value": 'values.decode(b"\\x18\\2" * 10**6)',
    "ten million arguments": 'calls.decode_request(field(1, b"f") + b"\\x22\\0" * 10**7).arguments()',
    "ten million keyword arguments": 'calls.decode_request(field(1, b"f") + b"\\x2a\\0" * 10**7).arguments()',
    "ten million tensors": 'calls.decode_request(field(1, b"f") + b"\\x3a\\0" * 10**7).arguments()',
    "ten million tensors in a payload": 'calls.decode_payload(b"\\x1a\\0" * 10**7).object()',
    "ten million dimensions": 'calls.decode_payload(field(3, field(2, b"\\1" * 10**7))).object()',
    "a million keys of one hash": (
        'values.decode(field(11, b"".join(field(1, field(1, values.encode(n * (2**61 - 1))) + field(2, b"\\x18\\2"))'
        " for n in range(200_000))))"
    ),
    "a million items of one hash": (
        'values.decode(field(17, b"".join(field(1, values.encode(n * (2**61 - 1))) for n in range(400_000))))'
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory taken")
def test_hostile_messages_take_neither_long_nor_much_memory() -> None:
    script = r"""
        import json, re, sys, time
        from tensorcall.wire import calls, protowire, values
        from tensorcall.wire.errors import BadPayload

        def field(number, body):
            return protowire.field(protowire.tag(number), body)

        for name, hostile in json.loads(sys.argv[1]).items():
            start = time.process_time()
            try:
                eval(hostile)
            except BadPayload:
                refused = True
            except Exception as error:
                refused = repr(error)
            else:
                refused = name == "a million kinds of one value"
            seconds = time.process_time() - start
            # Not getrusage, which counts in what the parent took before.
            peak = int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) // 1024
            print(name, refused, round(seconds, 2), peak, sep="|")
    """
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), json.dumps(HOSTILE)],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    ).stdout
    results = [line.split("|") for line in output.splitlines()]
    assert len(results) == len(HOSTILE)
    for name, refused_, seconds, megabytes in results:
        assert refused_ == "True", name
        assert float(seconds) < 10, (name, seconds)
        assert float(megabytes) < 500, (name, megabytes)


def test_a_set_of_honest_numbers_is_read() -> None:
    numbers = [random.Random(seed).randrange(-(2**62), 2**62) for seed in range(5_000)]
    assert trip(set(numbers)) == set(numbers)
    assert trip(dict.fromkeys(numbers)) == dict.fromkeys(numbers)
    assert trip({float(n) for n in numbers}) == {float(n) for n in numbers}


@pytest.mark.parametrize(
    "obj",
    [
        {"a": [1, 2.5, "text", None, True], "b": {1: (2, {3})}, "c": 1 << 80, "d": RRefId("a", 1, 2), "e": 1j},
        [Point(1.0, Row(1)), Color.RED, bytearray(b"ab"), [list(range(100))], b"x" * 300],
    ],
)
def test_one_that_ends_too_early_is_refused(obj: Any) -> None:
    data = values.encode(obj)
    assert all(refused(data[:end]) for end in range(len(data)))


@settings(deadline=None, max_examples=400)
@given(OBJECTS.map(values.encode).flatmap(damaged) | st.binary(max_size=60))
@example(b"\x8a\x01")
@example(b"\x8a\x01\x00")
@example(b"\x82\x01\x00")
def test_of_garbage_comes_an_object_or_a_bad_payload(data: bytes) -> None:
    refused(data)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([Point(1.0, [Row(1), {Frozen(1): 2}]), Color.RED, decimal.Decimal(1), slice(1), range(3)]),
    st.data(),
)
def test_of_garbled_types_comes_an_object_or_a_bad_payload(obj: Any, data: st.DataObject) -> None:
    refused(data.draw(damaged(values.encode(obj))))


# --- where it differs from the generated classes ---------------------------------------------------------------------


def test_of_repeated_fields_the_last_one_counts_where_protobuf_merges_messages() -> None:
    two = Value(list=ListValue(items=[ONE])).SerializeToString() * 2
    assert len(Value.FromString(two).list.items) == 2
    assert values.decode(two) == [1]
    two = (
        Value(complex=ComplexValue(real=1)).SerializeToString()
        + Value(complex=ComplexValue(imaginary=2)).SerializeToString()
    )
    assert object_of(Value.FromString(two)) == 1 + 2j
    assert values.decode(two) == 2j


def test_of_a_oneof_the_last_known_kind_counts() -> None:
    data = values.encode("a") + values.encode(1.5) + field(99, VARINT, b"\1")
    assert values.decode(data) == object_of(Value.FromString(data)) == 1.5


def test_a_kind_of_another_wire_type_is_unknown() -> None:
    data = field(3, FIXED64, b"12345678") + field(8, VARINT, b"\1")
    assert Value.FromString(data).WhichOneof("kind") is None
    assert refused(data)
    assert values.decode(values.encode(5) + data) == 5


def test_of_keys_named_twice_the_last_value_counts() -> None:
    entries = [field(1, LENGTH, field(1, LENGTH, b"a") + field(2, LENGTH, values.encode(n))) for n in (1, 2)]
    data = field(10, LENGTH, b"".join(entries))
    assert values.decode(data) == object_of(Value.FromString(data)) == {"a": 2}


def test_an_entry_without_a_key_has_the_empty_one() -> None:
    data = field(10, LENGTH, field(1, LENGTH, field(2, LENGTH, values.encode(1))))
    assert values.decode(data) == object_of(Value.FromString(data)) == {"": 1}


def test_an_entry_with_unknown_fields_is_kept_where_protobuf_drops_it() -> None:
    entry = field(1, LENGTH, b"a") + field(9, VARINT, b"\1") + field(2, LENGTH, values.encode(1))
    data = field(10, LENGTH, field(1, LENGTH, entry))
    assert not Value.FromString(data).map.fields
    assert values.decode(data) == {"a": 1}


def test_any_number_but_zero_is_true_and_any_null_is_none() -> None:
    assert values.decode(field(2, VARINT, varint(2**63))) is True
    assert values.decode(field(2, VARINT, b"\0")) is False
    assert values.decode(field(1, VARINT, b"\5")) is None


def test_several_values_share_the_limits() -> None:
    body = values.encode(MANY[: MAX_VALUES // 2])
    spans = [(0, len(body))] * 2
    with pytest.raises(TooLarge, match="more than 1,048,576 values"):
        values.decode_many(body, spans, None)
    assert values.decode_many(body, [], None) == []
