from __future__ import annotations

import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from support.trips import received, trip

from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire.blobs import Blob
from tensorcall.wire.errors import BadPayload, Unencodable
from tensorcall.wire.numpy_types import describe, parse
from tensorcall.wire.tensors import TensorReader, TensorWriter

ALIGNED = np.dtype([("a", "u1"), ("b", "f8"), ("c", [("x", "i2"), ("y", ">f4", (2, 3))])], align=True)

DTYPES = [
    *("?", "i1", "u1", "<i2", ">i2", "<u4", ">u4", "<i8", ">i8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"),
    *("<c8", ">c8", "<c16", ">c16", "q", "Q", "g", "G"),
    *("S3", "<U5", ">U5", "V7", "<M8[ns]", ">M8[D]", "<m8[25us]", "m8", "M8"),
    [("x", "<f4"), ("y", ">i4")],
    [("é", "U2"), ("it's\n", "M8[s]"), ("sub", "i2", (2, 2)), ("flag", "?")],
    [("nested", [("deep", [("er", "f8")])])],
    ALIGNED,
    np.dtype([("outer", ALIGNED, (2,)), ("z", "u1")], align=True),
]


def assert_same(made: np.ndarray, sent: np.ndarray) -> None:
    assert type(made) is np.ndarray
    assert (made.dtype, made.dtype.str, made.shape) == (sent.dtype, sent.dtype.str, sent.shape)
    assert made.flags.c_contiguous
    assert made.flags.writeable
    assert_same_elements(made, sent)


def assert_same_elements(made: np.ndarray, sent: np.ndarray) -> None:
    if sent.dtype.names is None:
        assert meaning(made) == meaning(sent)
    # Field by field: what lies between them is not sent.
    for name in sent.dtype.names or ():
        assert_same_elements(made[name], sent[name])


def meaning(array: np.ndarray) -> bytes:
    """The bytes of an array without those that a long double of 16 bytes has no use for."""
    data = array.tobytes()
    if array.dtype.char not in "gG" or array.dtype.itemsize % 16:
        return data
    return b"".join(data[i : i + 10] for i in range(0, len(data), 16))


def filled(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array whose bytes count up, as far as its type allows."""
    array = np.zeros(shape, dtype)
    if dtype.names is not None:
        for name in dtype.names:
            array[name] = filled(array[name].dtype, array[name].shape)
    else:
        array[...] = (np.arange(array.size) % 100).reshape(array.shape).astype(dtype)
    return array


@pytest.mark.parametrize("owned", [False, True], ids=["copied", "owned"])
@pytest.mark.parametrize("dtype", [np.dtype(d) for d in DTYPES], ids=str)
def test_every_dtype_and_shape_comes_back(dtype, owned):
    for shape in [(), (0,), (4,), (2, 3), (0, 3), (3, 0, 2)]:
        array = filled(dtype, shape)
        assert_same(trip(array, owned=owned), array)
    assert_same(trip(np.asfortranarray(filled(dtype, (3, 4)))), filled(dtype, (3, 4)))
    assert_same(trip(filled(dtype, (6, 4))[::-2, 1:3]), filled(dtype, (6, 4))[::-2, 1:3])


def has_titles(dtype: np.dtype) -> bool:
    return any(len(field) > 2 or has_titles(field[0].base) for field in (dtype.fields or {}).values())


@given(
    hnp.arrays(
        st.one_of(
            hnp.scalar_dtypes(),
            hnp.byte_string_dtypes(min_len=1),
            hnp.unicode_string_dtypes(min_len=1),
            hnp.array_dtypes(subtype_strategy=hnp.scalar_dtypes(), min_size=1, max_size=4, allow_subarrays=True),
            hnp.nested_dtypes(hnp.scalar_dtypes(), max_leaves=6),
        ).filter(lambda dtype: dtype.subdtype is None and dtype.itemsize > 0 and not has_titles(dtype)),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        fill=st.nothing(),
    ),
    st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_arrays_of_arbitrary_dtypes_come_back(array, owned):
    assert_same(trip(array, owned=owned), array)


SCALARS = [
    *(np.dtype(code).type(3) for code in "bBhHiIlLefdgFDG"),
    *(np.True_, np.float64("nan"), np.datetime64("2024-02-29T01:02"), np.datetime64("NaT"), np.timedelta64(5, "ms")),
    *(np.str_("ß\U0001f600"), np.str_(""), np.str_("end\0"), np.str_("\ud800"), np.bytes_(b"a\0"), np.bytes_(b"")),
    *(np.void(b"abc"), np.zeros((), [("x", "f4"), ("y", ">i2")])[()]),
]


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda s: f"{type(s).__name__} {s!r}")
def test_scalars_come_back(scalar):
    made = trip(scalar)
    assert type(made) is type(scalar)
    assert made.dtype == scalar.dtype
    assert made == scalar or (made != made and scalar != scalar)
    assert len(made.tobytes()) == len(scalar.tobytes())


def test_elements_are_little_endian_on_the_wire():
    writer = TensorWriter()
    writer.add(np.array([1, 2], ">i4"))
    (blob,) = writer.blobs
    assert (blob.dtype, blob.numpy_dtype, bytes(blob.data)) == (pb.DTYPE_INT32, ">i4", b"\1\0\0\0\2\0\0\0")


def test_types_of_numpy_are_as_they_describe_themselves():
    writer = TensorWriter()
    writer.add(np.array([1], ">M8[s]"))
    (blob,) = writer.blobs
    assert (blob.dtype, blob.numpy_dtype, bytes(blob.data)) == (pb.DTYPE_NUMPY, ">M8[s]", b"\0\0\0\0\0\0\0\1")


@pytest.mark.parametrize("array", [np.arange(6.0), np.zeros(3, "M8[s]"), np.zeros(2, "S3,i4")])
def test_contiguous_arrays_are_not_copied(array):
    writer = TensorWriter()
    writer.add(array)
    assert np.shares_memory(np.frombuffer(writer.blobs[0].data, np.uint8), array)
    blobs = received(writer.blobs, owned=True)
    assert np.shares_memory(np.frombuffer(blobs[0].data, np.uint8), TensorReader(blobs).get(0))


def test_columns_that_were_not_selected_are_not_sent():
    array = np.zeros(2, [("name", "S4"), ("password", "S6"), ("age", "i4")])
    array["password"] = b"secret"
    view = array[["name", "age"]]
    writer = TensorWriter()
    writer.add(view)
    assert b"secret" in view.tobytes()
    assert b"secret" not in bytes(writer.blobs[0].data)
    assert_same(trip(view), view)


@pytest.mark.parametrize("dtype", ["g", "G", [("a", "u1"), ("b", "g")]])
def test_bytes_that_mean_nothing_are_sent_as_zeros(dtype):
    dtype = np.dtype(dtype, align=True)
    if dtype.itemsize % 16:
        pytest.skip("a long double has another size here")
    array = np.frombuffer(b"\xff" * 4 * dtype.itemsize, dtype).copy()
    writer = TensorWriter()
    writer.add(array)
    data = bytes(writer.blobs[0].data)
    assert b"\xff" * 10 in data
    assert b"\xff" * 11 not in data
    assert_same(trip(array), array)


def test_records_arrive_as_structured_elements():
    records = np.zeros(2, [("x", "f4")]).view(np.recarray)
    plain = records.view(np.ndarray)
    assert trip(plain).dtype == np.dtype([("x", "f4")])
    assert type(trip(records[0])) is np.void


REFUSED = {
    "objects": (np.array([{}, []], object), r"Python objects: convert the array with \.astype\(\)"),
    "objects within": (np.zeros(2, [("a", "O")]), "Python objects"),
    "overlapping": (
        np.zeros(2, {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]}),
        r"overlapping .*repack_fields",
    ),
    "titles": (np.zeros(2, [(("title", "a"), "f4")]), r"title.*repack_fields"),
    "no size": (np.zeros(3, []), "take no space: send the shape"),
    "many columns": (np.zeros(1, [(f"column {i}", "f4") for i in range(2000)]), r"characters, at most"),
}
if hasattr(np.dtypes, "StringDType"):
    REFUSED["strings of any length"] = (np.array(["a"], np.dtypes.StringDType()), r"strings of any length: .*'U10'")


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused_with_advice(name):
    array, message = REFUSED[name]
    with pytest.raises(Unencodable, match=message):
        TensorWriter().add(array)


def test_ml_dtypes_arrays_come_back():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("bfloat16", "float8_e5m2", "int4"):
        array = np.arange(4).astype(getattr(ml_dtypes, name)).reshape(2, 2)
        made = trip(array)
        assert made.dtype == array.dtype
        assert made.tobytes() == array.tobytes()
    with pytest.raises(Unencodable, match="float8_e3m4 of ml_dtypes"):
        TensorWriter().add(np.zeros(2, ml_dtypes.float8_e3m4))
    made = trip(ml_dtypes.bfloat16(1.5))
    assert type(made) is ml_dtypes.bfloat16
    assert made == 1.5


# --- what a peer may claim -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.dtype(d) for d in DTYPES], ids=str)
def test_descriptions_are_read_as_written(dtype):
    assert parse(describe(dtype)) == dtype


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "f4",
            "=f4",
            "|f4",
            "O",
            "|O",
            "<O8",
            "object",
            "float",
            "int",
            "<f3",
            "<f1",
            ">b1",
            "<u1",
            "<i16",
            "f4,f4",
        ),
        *("(2,)<f4", "3<f4", "<M8[0s]", "<M8[s/0]", "<M8[foo]", "<M8[ns", "|V2147483648", "<U536870912"),
        *("|V99999999999999999999", "|S-1", "<U٣", " <f4", "<f4\0", "T", "a", "{'names': ['a'], 'formats': ['O']}"),
        *("[", "[]]", "[('a', '<f4')", "[('a', '|O')]", "[('a', 'O')]", "[('a', object)]", "[(('t', 'a'), '<f4')]"),
        *("[('a', '<f4'), ('a', '<f4')]", "[('a', '<f4', 2)]", "[('a', '<f4', ())]", "[('a', '<f4', (0,))]", "['a']"),
        *("[('a', '<f4', (-1,))]", "[('a', '<f4', (True,))]", "[('a', '<f8', (1048576, 1048576))]", "[('a',)]", "[1]"),
        *("[('a', '<f4', (99999999999999999999,))]", "[('a', ('<f4', (2,)))]", "[('', '<f4', (2,))]", "[('a', [1])]"),
        *("[__import__('os')]", "[lambda: 0]", "[b'a']", "[('a', '<f4') for x in y]", "[('a' 'b', 5)]", "[[[]]]"),
        *(
            "[" * 16000,
            "[(" * 8000,
            "[" * 33 + "]" * 33,
            "[" + "-" * 16000 + "1]",
            "[" + "1+" * 8000 + "1]",
            "[" + "1," * 8000,
        ),
        "[('a', " * 40 + "'<f4'" + ")]" * 40,
        "[" + ", ".join(f"('{i}', '<f4')" for i in range(5000)) + "]",
        *(r"[('\ud800', '|O')]", r"[('\q', '<f4')]", r"[('\N{DIGIT ONE}', '<f4')]", "[('a', '<f4'), ('b' 'c')]"),
    ],
    ids=lambda text: f"{text[:30]!r}",
)
def test_other_descriptions_are_refused(text):
    blob = Blob(pb.DTYPE_NUMPY, (), memoryview(bytes(4)), container=pb.CONTAINER_NUMPY_ARRAY, numpy_dtype=text)
    with pytest.raises(BadPayload, match="numpy_dtype"):
        TensorReader([blob]).get(0)


@given(st.text(alphabet="[](),'<>|=bifcSUVMmO0123456789 aé\\\n-+", max_size=40))
@settings(deadline=None, max_examples=200)
def test_any_text_describes_a_type_of_fixed_size_or_is_refused(text):
    try:
        dtype = parse(text)
    except BadPayload:
        return
    assert not dtype.hasobject
    assert dtype.itemsize < 2**31


@pytest.mark.skipif(np.finfo(np.longdouble).nmant != 63, reason="no x86")
def test_long_doubles_of_another_processor_are_not_taken_for_ours(monkeypatch):
    describe.cache_clear()
    parse.cache_clear()
    monkeypatch.setattr("tensorcall.wire.numpy_types._longdouble_is_x87", lambda: False)
    with pytest.raises(Unencodable, match="long double"):
        TensorWriter().add(np.zeros(2, np.longdouble))
    parse.cache_clear()


HOSTILE = {
    "bool": (Blob(pb.DTYPE_BOOL, (3,), memoryview(b"\0\1\2"), container=3), "neither 0 nor 1"),
    "bool scalar": (Blob(pb.DTYPE_BOOL, (), memoryview(b"\xff"), container=4), "neither 0 nor 1"),
    "bool within": (
        Blob(
            pb.DTYPE_NUMPY, (1,), memoryview(b"\0\1\5"), container=3, numpy_dtype="[('a', '|b1'), ('b', '|b1', (2,))]"
        ),
        "neither 0 nor 1",
    ),
    "character": (Blob(pb.DTYPE_NUMPY, (1,), memoryview(b"\0\0\x11\0"), container=3, numpy_dtype="<U1"), r"U\+10FFFF"),
    "character within": (
        Blob(
            pb.DTYPE_NUMPY, (1,), memoryview(b"\0\0\xff\0\0\0"), container=3, numpy_dtype="[('a', '|V2'), ('b', '>U1')]"
        ),
        r"U\+10FFFF",
    ),
    "big-endian character": (
        Blob(pb.DTYPE_NUMPY, (1,), memoryview(b"\xff\0\0\0"), container=3, numpy_dtype="[('b', '>U1')]"),
        r"U\+10FFFF",
    ),
    "string scalar": (Blob(pb.DTYPE_NUMPY, (), memoryview(b"\xff" * 4), container=4, numpy_dtype="<U1"), "not UTF-32"),
    "no space": (Blob(pb.DTYPE_NUMPY, (2**40,), memoryview(b""), container=3, numpy_dtype="|V0"), "take no space"),
    "no fields": (Blob(pb.DTYPE_NUMPY, (2**40,), memoryview(b""), container=3, numpy_dtype="[]"), "take no space"),
    "torch": (Blob(pb.DTYPE_NUMPY, (), memoryview(b"ab"), container=1, numpy_dtype="|S2"), "CONTAINER_NUMPY_ARRAY"),
    "scalar with a shape": (
        Blob(pb.DTYPE_INT8, (1,), memoryview(b"a"), container=4),
        r"numpy scalar has the shape \[1\]",
    ),
    "gradient": (Blob(pb.DTYPE_FLOAT32, (), memoryview(bytes(4)), container=3, requires_grad=True), "no gradient"),
    "other order": (Blob(pb.DTYPE_FLOAT32, (), memoryview(bytes(4)), numpy_dtype=">f8"), "is to be '>f4' or nothing"),
    "same order": (Blob(pb.DTYPE_FLOAT32, (), memoryview(bytes(4)), numpy_dtype="<f4"), "is to be '>f4' or nothing"),
    "order of bytes": (Blob(pb.DTYPE_INT8, (), memoryview(bytes(1)), numpy_dtype=">i1"), "is to be nothing"),
    "order of bfloat16": (Blob(pb.DTYPE_BFLOAT16, (), memoryview(bytes(2)), numpy_dtype=">V2"), "is to be nothing"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_impossible_arrays_are_refused(name):
    blob, message = HOSTILE[name]
    with pytest.raises(BadPayload, match=message):
        TensorReader([blob]).get(0)


def test_ml_dtypes_is_asked_for_only_where_numpy_lacks_a_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert trip(np.float32(1)) == 1
