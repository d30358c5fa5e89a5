import dataclasses
import datetime
import functools
import io
import math
import pickle
import subprocess
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorcall.wire import pickles
from tensorcall.wire.errors import BadPayload, RRefUnknown, Unencodable
from tensorcall.wire.tensors import TensorReader, TensorWriter

torch = pytest.importorskip("torch")

# torch marks TorchScript as on its way out.
scripted = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")


def round_trip(obj: Any) -> Any:
    writer = TensorWriter()
    data = pickles.dumps(obj, writer)
    return pickles.loads(data, TensorReader(writer.blobs))


def dumps(obj: Any) -> bytes:
    return pickles.dumps(obj, TensorWriter())


def loads(data: bytes, **kwargs: Any) -> Any:
    return pickles.loads(data, TensorReader([]), **kwargs)


def function(x: int) -> int:
    return x + 1


@dataclasses.dataclass
class Node:
    value: Any
    next: Any = None


class Reduced:
    """Pickled only by reducers that tests register."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self):
        raise TypeError("not by itself")


class SubTensor(torch.Tensor):
    pass


class SubArray(np.ndarray):
    pass


@pytest.fixture
def reducer():
    classes = []

    def add(cls, function):
        pickles.register_reducer(cls, function)
        classes.append(cls)

    yield add
    for cls in classes:
        pickles.unregister_reducer(cls)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.datetimes(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.builds(Node, inner)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_objects_come_back(obj):
    assert round_trip(obj) == obj
    writer = TensorWriter()
    pickles.dumps(obj, writer)
    assert not writer.blobs


def test_functions_classes_and_methods_go_by_name():
    assert round_trip(function) is function
    assert round_trip(Node) is Node
    assert round_trip(math.sqrt) is math.sqrt
    assert round_trip(torch.add) is torch.add
    assert round_trip(functools.partial(function, 2))() == 3
    assert round_trip([1].count)(1) == 1


def test_a_memoryview_is_read():
    assert loads(memoryview(b"xx" + dumps([1, "a"]) + b"yy")[2:-2]) == [1, "a"]


# Tensors.


def test_tensors_leave_the_pickle():
    tensor, array = torch.arange(1000.0), np.arange(1000)
    writer = TensorWriter()
    data = pickles.dumps({"a": tensor, "b": [array, Node(tensor)]}, writer)
    assert len(data) < 300
    assert len(writer.blobs) == 2
    result = pickles.loads(data, TensorReader(writer.blobs))
    assert torch.equal(result["a"], tensor)
    assert np.array_equal(result["b"][0], array)
    assert type(result["b"][0]) is np.ndarray
    assert result["b"][1].value is result["a"]


def test_one_tensor_twice_travels_once_and_stays_one():
    tensor = torch.ones(3)
    writer = TensorWriter()
    data = pickles.dumps((tensor, [tensor], {"t": tensor}), writer)
    assert len(writer.blobs) == 1
    first, (second,), third = pickles.loads(data, TensorReader(writer.blobs))
    assert first is second
    assert first is third["t"]


def test_a_shared_writer_numbers_on():
    writer = TensorWriter()
    one, two = pickles.dumps(torch.zeros(1), writer), pickles.dumps(torch.ones(1), writer)
    reader = TensorReader(writer.blobs)
    assert pickles.loads(one, reader).item() == 0
    assert pickles.loads(two, reader).item() == 1


def test_a_tensor_stands_as_the_persistent_id_of_the_contract():
    writer = TensorWriter()
    data = pickles.dumps([torch.ones(1), torch.zeros(1)], writer)
    seen = []

    class Reader(pickle.Unpickler):
        def persistent_load(self, pid):
            seen.append(pid)

    Reader(io.BytesIO(data)).load()
    assert seen == [("tensor", 0), ("tensor", 1)]


def test_subclasses_and_arrays_of_objects_are_pickled_as_pickle_does():
    sub = torch.ones(2).as_subclass(SubTensor)
    parameter = torch.nn.Parameter(torch.ones(2))
    objects = np.array([1, "a", None], dtype=object)
    view = np.arange(3).view(SubArray)
    result = round_trip([sub, parameter, objects, view])
    assert [type(item) for item in result] == [SubTensor, torch.nn.Parameter, np.ndarray, SubArray]
    assert torch.equal(result[0], sub)
    assert torch.equal(result[1], parameter)
    assert result[1].requires_grad
    assert result[2].tolist() == [1, "a", None]
    assert result[3].tolist() == [0, 1, 2]


def test_numpy_scalars_stay_in_the_pickle():
    scalars = [np.float32(1.5), np.int8(3), np.datetime64("2024-01-01"), np.bool_(True)]
    writer = TensorWriter()
    result = pickles.loads(pickles.dumps(scalars, writer), TensorReader(writer.blobs))
    assert not writer.blobs
    assert result == scalars
    assert [type(item) for item in result] == [type(item) for item in scalars]


def test_modules_come_back():
    module = torch.nn.Linear(2, 3)
    result = round_trip(module)
    assert torch.equal(result(torch.ones(2)), module(torch.ones(2)))


@pytest.mark.parametrize("pid", [("tensor", 0), ("tensor", -1), ("tensor", "0"), ("tensor",), ("rref", 1), (), 5, "x"])
def test_unknown_persistent_ids_are_refused(pid):
    class Writer(pickle.Pickler):
        def persistent_id(self, obj):
            return pid if obj == "here" else None

    stream = io.BytesIO()
    Writer(stream, protocol=5).dump(["here"])
    with pytest.raises(BadPayload):
        loads(stream.getvalue())


# Scripts.


@scripted
def test_script_modules_come_back_at_any_depth():
    module = torch.jit.script(torch.nn.Linear(2, 3))
    result = round_trip({"modules": [module]})["modules"][0]
    assert isinstance(result, torch.jit.ScriptModule)
    assert torch.equal(result(torch.ones(2)), module(torch.ones(2)))


@scripted
def test_script_functions_come_back_callable():
    @torch.jit.script
    def double(x: torch.Tensor):
        return x * 2

    result = round_trip([double])[0]
    assert torch.equal(result(torch.ones(2)), torch.full((2,), 2.0))


# Reducers and other persistent ids.


def test_a_registered_reducer_is_asked(reducer):
    reducer(Reduced, lambda obj: (Node, (obj.value,)))
    tensor = torch.ones(1)
    result = round_trip([Reduced(tensor), tensor])
    assert type(result[0]) is Node
    assert result[0].value is result[1]


def test_a_registered_reducer_comes_before_the_way_of_tensors(reducer):
    reducer(torch.Tensor, lambda obj: (Node, (obj.tolist(),)))
    writer = TensorWriter()
    result = pickles.loads(pickles.dumps(torch.ones(2), writer), TensorReader(writer.blobs))
    assert result == Node([1.0, 1.0])
    assert not writer.blobs


def test_registering_reducers():
    def first(obj):
        return Node, (1,)

    pickles.register_reducer(Reduced, first)
    pickles.register_reducer(Reduced, first)
    with pytest.raises(ValueError, match="unregister"):
        pickles.register_reducer(Reduced, lambda obj: (Node, (2,)))
    assert round_trip(Reduced(0)) == Node(1)
    pickles.unregister_reducer(Reduced)
    pickles.unregister_reducer(Reduced)
    with pytest.raises(Unencodable, match="not by itself"):
        dumps(Reduced(0))
    for cls in (int, dict, bytearray):
        with pytest.raises(TypeError, match="never asks"):
            pickles.register_reducer(cls, first)


def test_other_objects_leave_the_pickle_by_persistent_ids():
    def save(obj):
        return ("rref", obj.value, 7)

    data = pickles.dumps({"r": [Reduced("a")]}, TensorWriter(), persistent={Reduced: save})
    result = loads(data, persistent={"rref": lambda *rest: rest})
    assert result == {"r": [("a", 7)]}
    with pytest.raises(BadPayload, match="rref"):
        loads(data)


def test_what_a_loader_says_passes_through():
    def gone(value):
        raise RRefUnknown("gone")

    data = pickles.dumps(Reduced(1), TensorWriter(), persistent={Reduced: lambda obj: ("rref", obj.value)})
    with pytest.raises(RRefUnknown, match="gone"):
        loads(data, persistent={"rref": gone})


# What can't be pickled.


def test_what_cannot_be_pickled_is_said_and_leaves_nothing_behind():
    tensor = torch.ones(2)
    lock = threading.Lock()
    with pytest.raises(Unencodable, match=r"cannot pickle '_thread\.lock' object") as caught:
        dumps([tensor, lock])
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(Unencodable, match="top level of a module"):
        dumps([tensor, lambda: 1])
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Unencodable, match="recursion"):
        dumps(deep)
    writer = TensorWriter()
    data = pickles.dumps(tensor, writer)
    assert len(writer.blobs) == 1
    assert torch.equal(pickles.loads(data, TensorReader(writer.blobs)), tensor)


def test_a_reducer_that_raises_leaves_nothing_behind(reducer):
    def nested(obj):
        # A pickler within a pickler, on one thread.
        if obj.value == "raise":
            raise OSError("disk")
        return Node, (round_trip([torch.ones(1), obj.value]),)

    reducer(Reduced, nested)
    with pytest.raises(OSError, match="disk"):
        dumps([torch.ones(2), Reduced("raise")])
    result = round_trip([torch.zeros(2), Reduced("fine")])
    assert torch.equal(result[0], torch.zeros(2))
    assert result[1].value[1] == "fine"


def test_what_the_tensor_table_refuses_passes_through():
    class Full(TensorWriter):
        def add(self, obj):
            raise Unencodable("no such tensors here")

    with pytest.raises(Unencodable, match=r"^no such tensors here$"):
        pickles.dumps([torch.ones(1)], Full())


# What can't be unpickled.


@pytest.fixture
def vanishing():
    """A module that the sender has and the receiver hasn't."""
    module = types.ModuleType("tensorcall_vanishing")
    exec("def function(): pass\nclass Thing:\n    def method(self): pass", module.__dict__)
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


def check_missing(result: object, text: str) -> None:
    assert type(result) is AttributeError
    assert text in str(result)
    assert "importable on the worker" in str(result)
    assert isinstance(result.__cause__, AttributeError | ImportError)
    assert result.__cause__.__traceback__ is not None


def test_a_missing_function_class_or_module_is_a_result(vanishing):
    by_function, by_instance = dumps((vanishing.function, torch.Tensor)), dumps([vanishing.Thing()])
    by_method = dumps(vanishing.Thing().method)
    del vanishing.Thing.method
    check_missing(loads(by_method), "method")
    del vanishing.function, vanishing.Thing
    check_missing(loads(by_function), "function")
    check_missing(loads(by_instance), "Thing")
    del sys.modules[vanishing.__name__]
    check_missing(loads(by_function), "No module named 'tensorcall_vanishing'")


def test_a_module_whose_import_fails_is_missing(tmp_path, monkeypatch, vanishing):
    data = dumps(vanishing.function)
    del sys.modules[vanishing.__name__]
    (tmp_path / "tensorcall_vanishing.py").write_text("import tensorcall_no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_missing(loads(data), "tensorcall_no_such_module")


SAMPLE = {"a": [1, 2.5, None, "text" * 100], "b": (Node(function), datetime.timedelta(1)), "c": torch.ones(3)}


def test_every_truncated_pickle_is_refused():
    writer = TensorWriter()
    data = pickles.dumps(SAMPLE, writer)
    for length in range(len(data)):
        with pytest.raises(BadPayload):
            pickles.loads(data[:length], TensorReader(writer.blobs))


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage", b"\x80\x05", b"\x80\xff.", b"\x00" * 100, b".", b"0.", b"\x80\x05N.N", b"\x80\x05NN\x86R."],
)
def test_garbage_is_refused(data):
    with pytest.raises(BadPayload):
        loads(data)


def refuse() -> None:
    raise ZeroDivisionError("made me do it")


class Refusing:
    def __reduce__(self):
        return refuse, ()


def test_what_an_object_raises_when_it_is_made_is_the_cause():
    with pytest.raises(BadPayload, match="ZeroDivisionError: made me do it") as caught:
        loads(dumps(Refusing()))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_threads_do_not_mix_their_tensors():
    failures = []

    def work(number):
        for _ in range(50):
            result = round_trip([torch.full((3,), float(number)), number])
            if result[0].tolist() != [float(number)] * 3 or result[1] != number:
                failures.append(result)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_torch_is_not_imported_for_those_who_have_none():
    code = """
import sys
import numpy
from tensorcall.wire import pickles
from tensorcall.wire.tensors import TensorReader, TensorWriter
writer = TensorWriter()
data = pickles.dumps({"a": numpy.arange(3), "b": numpy.array(["x", None])}, writer)
result = pickles.loads(data, TensorReader(writer.blobs))
assert result["a"].tolist() == [0, 1, 2]
assert result["b"].tolist() == ["x", None]
assert len(writer.blobs) == 1
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
