from __future__ import annotations

import functools
import gc
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from support.trips import received, trip

from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire import dtypes, limits
from tensorcall.wire.blobs import Blob
from tensorcall.wire.errors import BadPayload, TooLarge, Unencodable
from tensorcall.wire.tensors import TensorReader, TensorWriter, check, is_tensor

# Said once about sparse tensors that the tests themselves make.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")

DENSE = [
    getattr(torch, element.name)
    for element in dtypes.ELEMENTS
    if not element.quantized and hasattr(torch, element.name)
]
FLOATING = [dtype for dtype in DENSE if dtype.is_floating_point or dtype.is_complex]
RAW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def raw(tensor: torch.Tensor) -> bytes:
    """The elements of any dense tensor in C order."""
    return tensor.detach().view(RAW[tensor.itemsize]).contiguous().view(-1).numpy().tobytes()


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of random bytes. Made of bytes, since torch can fill only some dtypes."""
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    data = np.random.default_rng(0).integers(0, 2 if dtype is torch.bool else 256, count, dtype=np.uint8)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if count else _nothing(dtype).reshape(shape)


def _nothing(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(0, dtype=RAW[dtype.itemsize]).view(dtype)


def assert_same(made: torch.Tensor, sent: torch.Tensor) -> None:
    assert type(made) is type(sent)
    assert (made.dtype, made.shape, made.requires_grad) == (sent.dtype, sent.shape, sent.requires_grad)
    assert made.is_contiguous()
    assert raw(made) == raw(sent)


# --- dense torch tensors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owned", [False, True], ids=["copied", "owned"])
@pytest.mark.parametrize("dtype", DENSE, ids=str)
def test_every_dtype_and_shape_comes_back(dtype, owned):
    for shape in [(), (0,), (5,), (2, 3), (0, 3), (3, 0, 2), (1, 2, 1, 3)]:
        tensor = random_tensor(dtype, shape)
        assert_same(trip(tensor, owned=owned), tensor)


@given(
    dtype=st.sampled_from(DENSE),
    shape=st.lists(st.integers(0, 4), max_size=5),
    order=st.randoms(use_true_random=False),
    step=st.integers(1, 3),
    owned=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_views_of_any_strides_come_back_in_c_order(dtype, shape, order, step, owned):
    tensor = random_tensor(dtype, tuple(shape))
    axes = list(range(len(shape)))
    order.shuffle(axes)
    view = tensor.permute(axes)
    if axes:
        view = view[::step]
    assert_same(trip(view, owned=owned), view)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradients_and_parameters(dtype):
    for tensor in (random_tensor(dtype, (2, 3)).requires_grad_(), random_tensor(dtype, ())):
        assert_same(trip(tensor), tensor)
        for grad in (True, False):
            parameter = torch.nn.Parameter(tensor.detach(), requires_grad=grad)
            assert_same(trip(parameter), parameter)


def test_a_parameter_of_integers_comes_back():
    parameter = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    assert_same(trip(parameter), parameter)


def test_a_tensor_that_is_no_leaf_arrives_as_a_leaf():
    tensor = torch.ones(3, requires_grad=True) * 2
    made = trip(tensor)
    assert made.is_leaf
    made.sum().backward()
    assert made.grad.tolist() == [1, 1, 1]


def test_expanded_views_arrive_in_full():
    view = torch.arange(3.0).expand(4, 3)
    made = trip(view)
    assert torch.equal(made, view)
    made[0, 0] = 9
    assert made[1, 0] == 0


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.complex32])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_conjugate_and_negative_views_arrive_resolved(dtype, shape):
    tensor = random_tensor(torch.complex64, shape)
    tensor = torch.view_as_complex(torch.view_as_real(tensor).nan_to_num(1.0, 2.0, 3.0).to(dtype.to_real()))
    values = torch.view_as_real(tensor)
    conjugated = trip(tensor.conj())
    assert not conjugated.is_conj()
    assert torch.equal(torch.view_as_real(conjugated), values * torch.tensor([1, -1], dtype=values.dtype))
    assert torch.equal(trip(tensor.conj().imag), -values[..., 1])
    if len(shape) == 2:
        assert torch.equal(torch.view_as_real(trip(tensor.mT.conj().mT)), torch.view_as_real(conjugated))
    assert torch.equal(torch.view_as_real(tensor), values)


@pytest.mark.skipif(not hasattr(torch, "bcomplex32"), reason="this torch has no bcomplex32")
def test_conjugates_that_torch_cannot_make():
    tensor = torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16).view(torch.bcomplex32)
    made = trip(tensor.conj())
    assert made.view(torch.bfloat16).tolist() == [[1, -2], [3, -4]]
    assert tensor.view(torch.bfloat16).tolist() == [[1, 2], [3, 4]]


def test_zero_tensors_arrive_as_zeros():
    assert trip(torch._efficientzerotensor((2, 2))).tolist() == [[0, 0], [0, 0]]


def test_mkldnn_tensors_arrive_dense():
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without mkldnn")
    tensor = torch.arange(16.0).reshape(4, 4)
    assert torch.equal(trip(tensor.to_mkldnn()), tensor)


def test_the_most_dimensions():
    tensor = torch.arange(2).reshape((1,) * 63 + (2,))
    assert_same(trip(tensor), tensor)
    with pytest.raises(Unencodable, match="65 dimensions, at most 64"):
        TensorWriter().add(torch.zeros((1,) * 65))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_tensors_arrive_on_the_cpu_and_say_where_they_were():
    tensor = torch.arange(3.0, device="cuda", requires_grad=True)
    writer = TensorWriter()
    writer.add(tensor)
    assert writer.blobs[0].device == "cuda:0"
    assert_same(trip(tensor), tensor.detach().cpu().requires_grad_())


def test_another_default_device_does_not_matter():
    with torch.device("meta"):
        assert trip(torch.ones(2, device="cpu")).tolist() == [1, 1]
        sparse = torch.eye(2, device="cpu").to_sparse()
        assert torch.equal(trip(sparse).to_dense(), torch.eye(2, device="cpu"))


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_same_object_travels_once_and_stays_one():
    writer = TensorWriter()
    tensor, array, scalar = torch.ones(2), np.ones(2), np.float64(1)
    indices = [writer.add(obj) for obj in (tensor, array, tensor, scalar, array, scalar)]
    assert indices == [0, 1, 0, 2, 1, 2]
    reader = TensorReader(received(writer.blobs))
    assert reader.get(0) is reader.get(0)
    assert reader.get(1) is reader.get(1)


def test_objects_live_as_long_as_the_table():
    writer = TensorWriter()
    # Without being kept alive, these would all have the same id.
    assert [writer.add(torch.full((2,), i)) for i in range(50)] == list(range(50))
    assert [bytes(blob.data)[0] for blob in writer.blobs] == list(range(50))


def test_a_refused_tensor_leaves_nothing_in_the_table():
    writer = TensorWriter()
    with pytest.raises(Unencodable):
        writer.add(torch.empty(2, 3, device="meta"))
    assert writer.blobs == []


def test_the_table_has_an_end(monkeypatch):
    monkeypatch.setattr("tensorcall.wire.tensors.MAX_TENSORS", 2)
    writer = TensorWriter()
    writer.add(torch.ones(1))
    writer.add(torch.ones(1))
    with pytest.raises(TooLarge, match="at most 2 tensors"):
        writer.add(torch.ones(1))


# --- copies ----------------------------------------------------------------------------------------------------------


def address(data: memoryview) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data


@pytest.mark.parametrize("dtype", DENSE, ids=str)
def test_sending_copies_nothing_that_is_contiguous(dtype):
    tensor = random_tensor(dtype, (8, 4))
    writer = TensorWriter()
    writer.add(tensor)
    writer.add(tensor[2:4])
    assert address(writer.blobs[0].data) == tensor.data_ptr()
    assert address(writer.blobs[1].data) == tensor[2:4].data_ptr()


def test_what_is_sent_outlives_the_tensor():
    blob = TensorWriter()
    blob.add(torch.arange(1000))
    data = blob.blobs[0].data
    del blob
    gc.collect()
    assert np.frombuffer(data, np.int64).tolist() == list(range(1000))


@pytest.mark.parametrize("dtype", DENSE, ids=str)
def test_owned_memory_is_not_copied(dtype):
    blobs = received(_table(random_tensor(dtype, (4, 4))), owned=True)
    assert TensorReader(blobs).get(0).data_ptr() == address(blobs[0].data)


@pytest.mark.parametrize("owned", [True, False])
def test_owned_memory_that_cannot_be_written_or_is_not_aligned_is_copied(owned):
    data = memoryview(bytearray(9))[1:] if owned else memoryview(bytes(8))
    blob = Blob(pb.DTYPE_FLOAT32, (2,), data, owned=True)
    made = TensorReader([blob]).get(0)
    assert made.data_ptr() != address(data)
    made += 1


@pytest.mark.parametrize(
    "make", [lambda: torch.ones(3, 3), lambda: np.ones((3, 3)), lambda: _csr(torch.int64), lambda: torch.ones(3) > 0]
)
def test_what_arrives_is_our_own(make):
    """Writable, and nothing of the message stays alive."""

    class Message(bytearray):
        pass

    table = _table(make())
    messages = [Message(blob.data) if blob.data is not None else None for blob in table]
    for blob, message in zip(table, messages, strict=True):
        blob.data = None if message is None else memoryview(message)
    alive = [weakref.ref(message) for message in messages if message is not None]
    made = TensorReader(table).get(len(table) - 1)
    del table, messages, message, blob
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)
    values = made.values() if isinstance(made, torch.Tensor) and made.layout is torch.sparse_csr else made
    values[...] = 0


def _table(tensor: object) -> list[Blob]:
    writer = TensorWriter()
    writer.add(tensor)
    return writer.blobs


# --- sparse and quantised --------------------------------------------------------------------------------------------


def _coo(dense: tuple[int, ...] = (), *, nnz: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One value several times at one place."""
    indices = torch.ones(2, nnz, dtype=torch.int64)
    return torch.sparse_coo_tensor(indices, random_tensor(dtype, (nnz, *dense)), (5, 6, *dense))


def _csr(index: torch.dtype, *dense: int) -> torch.Tensor:
    compressed, plain = torch.tensor([0, 1, 2], dtype=index), torch.tensor([0, 1], dtype=index)
    return torch.sparse_csr_tensor(compressed, plain, torch.ones(2, *dense), (2, 2, *dense))


MATRIX = torch.arange(24.0).reshape(4, 6) * (torch.arange(24).reshape(4, 6) % 3 == 0)
BATCH = torch.stack([MATRIX, MATRIX * 2])

SPARSE: dict[str, Callable[[], torch.Tensor]] = {
    "coo": _coo,
    "coo coalesced": lambda: _coo().coalesce(),
    "coo one value": lambda: _coo(nnz=1),
    "coo one value coalesced": lambda: _coo(nnz=1).coalesce(),
    "coo without values": lambda: _coo(nnz=0),
    "coo hybrid": lambda: _coo((2, 3)),
    "coo hybrid coalesced": lambda: _coo((2,)).coalesce(),
    "coo 0-dim": lambda: torch.sparse_coo_tensor(torch.zeros((0, 1), dtype=torch.int64), torch.ones(1), ()),
    "coo of bool": lambda: _coo(dtype=torch.bool),
    "coo of bfloat16": lambda: _coo(dtype=torch.bfloat16),
    "coo of complex32": lambda: _coo(dtype=torch.complex32),
    "coo of int4": lambda: _coo(dtype=torch.int4),
    "coo grad": lambda: _coo().requires_grad_(),
    "coo no leaf": lambda: _coo().requires_grad_() * 2,
    "csr": lambda: MATRIX.to_sparse_csr(),
    "csr grad": lambda: MATRIX.to_sparse_csr().requires_grad_(),
    "csr int32": lambda: _csr(torch.int32),
    "csr hybrid": lambda: _csr(torch.int64, 3),
    "csr empty": lambda: torch.zeros(3, 4).to_sparse_csr(),
    "csr batched": lambda: BATCH.to_sparse_csr(),
    "csc": lambda: MATRIX.to_sparse_csc(),
    "csc batched": lambda: BATCH.to_sparse_csc(),
    "bsr": lambda: MATRIX.to_sparse_bsr((2, 3)),
    "bsr batched": lambda: BATCH.to_sparse_bsr((2, 2)),
    "bsc": lambda: MATRIX.to_sparse_bsc((2, 3)),
}


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]


@pytest.mark.parametrize("owned", [False, True], ids=["copied", "owned"])
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_tensors_come_back(name, owned):
    tensor = SPARSE[name]()
    made = trip(tensor, owned=owned)
    assert (made.layout, made.dtype, made.shape) == (tensor.layout, tensor.dtype, tensor.shape)
    assert (made.requires_grad, made.is_leaf) == (tensor.requires_grad, True)
    if tensor.layout is torch.sparse_coo:
        assert made.is_coalesced() == tensor.is_coalesced()
    for part, sent in zip(_parts(made), _parts(tensor), strict=True):
        assert (part.dtype, part.shape, raw(part)) == (sent.dtype, sent.shape, raw(sent))


def test_a_sparse_parameter_comes_back():
    parameter = torch.nn.Parameter(_coo())
    made = trip(parameter)
    assert type(made) is torch.nn.Parameter
    assert torch.equal(made.detach().to_dense(), parameter.detach().to_dense())


def _per_channel(dtype: torch.dtype, axis: int, *, floating: bool = False) -> torch.Tensor:
    values = torch.arange(15.0).reshape(3, 5)
    channels = values.shape[axis]
    zeros = torch.arange(channels) / 2 if floating else torch.arange(channels)
    return torch.quantize_per_channel(values, torch.arange(1.0, channels + 1), zeros, axis, dtype)


def _per_tensor(dtype: torch.dtype) -> torch.Tensor:
    return torch.quantize_per_tensor(torch.arange(15.0).reshape(3, 5), 0.5, 2, dtype)


QUANTIZED: dict[str, Callable[[], torch.Tensor]] = {
    "strided": lambda: _per_tensor(torch.quint8).t(),
    "sliced": lambda: _per_tensor(torch.qint32)[1:, 2:],
    "sliced channels": lambda: _per_channel(torch.qint8, 0)[1:],
}
for _dtype in (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4):
    _name = str(_dtype).removeprefix("torch.")
    QUANTIZED[_name] = functools.partial(_per_tensor, _dtype)
    QUANTIZED[f"{_name} 0-dim"] = functools.partial(torch.quantize_per_tensor, torch.tensor(1.0), 0.5, 2, _dtype)
    QUANTIZED[f"{_name} empty"] = functools.partial(torch.quantize_per_tensor, torch.zeros(0, 3), 0.5, 2, _dtype)
    for _axis in (0, 1):
        if _dtype not in (torch.quint4x2, torch.quint2x4):
            QUANTIZED[f"{_name} channels {_axis}"] = functools.partial(_per_channel, _dtype, _axis)
        if _dtype is not torch.qint32:
            QUANTIZED[f"{_name} float channels {_axis}"] = functools.partial(_per_channel, _dtype, _axis, floating=True)


@pytest.mark.parametrize("owned", [False, True], ids=["copied", "owned"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_quantised_tensors_come_back(name, owned):
    tensor = QUANTIZED[name]()
    made = trip(tensor, owned=owned)
    assert (made.dtype, made.shape, made.qscheme()) == (tensor.dtype, tensor.shape, tensor.qscheme())
    if tensor.qscheme() is torch.per_tensor_affine:
        assert (made.q_scale(), made.q_zero_point()) == (tensor.q_scale(), tensor.q_zero_point())
    else:
        assert torch.equal(made.q_per_channel_scales(), tensor.q_per_channel_scales())
        assert torch.equal(made.q_per_channel_zero_points(), tensor.q_per_channel_zero_points())
        assert made.q_per_channel_axis() == tensor.q_per_channel_axis()
    assert torch.equal(made.int_repr(), tensor.int_repr())
    assert torch.equal(made.dequantize(), tensor.dequantize())


SILENT = {
    "complex32": "[Blob(pb.DTYPE_COMPLEX32, (2,), bytes_(8))]",
    "coo": """[
        Blob(pb.DTYPE_COMPLEX32, (1,), bytes_(4)), Blob(pb.DTYPE_INT64, (1, 1), bytes_(8)),
        Blob(pb.DTYPE_COMPLEX32, (3,), sparse=Sparse(pb.SPARSE_KIND_COO, 0, 1)),
    ]""",
    "csr": """[
        Blob(pb.DTYPE_FLOAT32, (0,), bytes_(0)), Blob(pb.DTYPE_INT64, (0,), bytes_(0)),
        Blob(pb.DTYPE_INT64, (3,), bytes_(24)),
        Blob(pb.DTYPE_FLOAT32, (2, 2), sparse=Sparse(pb.SPARSE_KIND_CSR, 0, 1, 2)),
    ]""",
    "quantised": "[Blob(pb.DTYPE_QINT8, (2,), bytes_(2), quantization=Quantization(1, 1.0))]",
}


@pytest.mark.parametrize("name", SILENT)
def test_torch_says_nothing_about_what_the_receiver_did_not_choose(name):
    """In a process of its own, since torch says such things once."""
    program = f"""
import warnings
import torch
from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire.blobs import Blob, Quantization, Sparse
from tensorcall.wire.tensors import TensorReader

def bytes_(count):
    return memoryview(bytes(count))

table = {SILENT[name]}
filters = list(warnings.filters)
TensorReader(table).get(len(table) - 1)
assert warnings.filters == filters
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


# --- what has no form on the wire ------------------------------------------------------------------------------------


class Mine(torch.Tensor):
    pass


class MyFloat(np.float64):
    pass


def _nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def _fake() -> torch.Tensor:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(2)


def _freed() -> torch.Tensor:
    tensor = torch.zeros(3)
    tensor.untyped_storage().resize_(0)
    return tensor


def _unscaled() -> torch.Tensor:
    return torch.empty(2, dtype=torch.qint8)


def _view_of_bits() -> torch.Tensor:
    try:
        return _per_tensor(torch.quint4x2).t()
    except RuntimeError:
        pytest.skip("this torch makes no such view")


def _negative_scale() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(2), -1.0, 0, torch.qint8)


REFUSED = {
    "meta": (lambda: torch.zeros(2, device="meta"), r"meta device has no elements: make it on a real device"),
    "nested": (_nested, r"nested tensor .* send list\(tensor.unbind\(\)\)"),
    "fake": (_fake, r"FakeTensor is a subclass .* it has no elements: send its shape"),
    "subclass": (lambda: torch.ones(2).as_subclass(Mine), r"Mine is a subclass .* send \.as_subclass\(torch\.Tensor\)"),
    "uninitialized": (torch.nn.UninitializedParameter, r"UninitializedParameter .* run its module once"),
    "freed": (_freed, r"storage of this tensor was freed"),
    "no scale": (_unscaled, r"without a scale .* torch.quantize_per_tensor"),
    "negative scale": (_negative_scale, r"scales from -1.0 .* or \.dequantize\(\) it first"),
    "view of bits": (_view_of_bits, r"view of a quint4x2 .*dequantize"),
    "masked": (lambda: np.ma.masked_array([1, 2], [0, 1]), r"MaskedArray .* send \.filled\(\)"),
    "recarray": (lambda: np.zeros(2, "i4,i4").view(np.recarray), r"recarray .* send array\.view\(numpy\.ndarray\)"),
    "scalar subclass": (lambda: MyFloat(1), r"MyFloat is a subclass"),
    "no tensor": (lambda: [1, 2], r"builtins\.list is neither a tensor nor a numpy array"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused_with_advice(name):
    make, message = REFUSED[name]
    obj = make()
    writer = TensorWriter()
    with pytest.raises(Unencodable, match=message):
        writer.add(obj)
    assert writer.blobs == []


@pytest.mark.parametrize(
    "transform", [torch.vmap, torch.func.functionalize, lambda f: torch.func.grad(lambda x: f(x).sum())]
)
def test_tensors_within_a_transform_are_refused(transform):
    def add(x):
        with pytest.raises(Unencodable):
            TensorWriter().add(x)
        return x

    transform(add)(torch.ones(3))


def test_is_tensor_means_exact_classes():
    for obj in (
        torch.ones(1),
        torch.nn.Parameter(torch.ones(1)),
        np.ones(1),
        np.float32(1),
        np.str_("a"),
        np.void(b"a"),
    ):
        assert is_tensor(obj)
    for obj in (
        torch.ones(1).as_subclass(Mine),
        np.ma.masked_array([1]),
        MyFloat(1),
        1.0,
        "a",
        None,
        [],
        torch.float32,
    ):
        assert not is_tensor(obj)


# --- preferences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "prefer", "cls"),
    [
        (pb.CONTAINER_UNSPECIFIED, None, torch.Tensor),
        (pb.CONTAINER_UNSPECIFIED, "torch", torch.Tensor),
        (pb.CONTAINER_UNSPECIFIED, "numpy", np.ndarray),
        (pb.CONTAINER_TORCH_TENSOR, None, torch.Tensor),
        (pb.CONTAINER_TORCH_TENSOR, "numpy", np.ndarray),
        (pb.CONTAINER_TORCH_PARAMETER, None, torch.nn.Parameter),
        (pb.CONTAINER_TORCH_PARAMETER, "numpy", np.ndarray),
        (pb.CONTAINER_NUMPY_ARRAY, "torch", np.ndarray),
        (pb.CONTAINER_NUMPY_SCALAR, "torch", np.float32),
    ],
)
def test_containers_and_preferences(container, prefer, cls):
    blob = Blob(pb.DTYPE_FLOAT32, (), memoryview(np.float32(1.5).tobytes()), container=container)
    made = TensorReader([blob], prefer).get(0)
    assert type(made) is cls
    assert made == 1.5


def test_what_numpy_lacks_is_told_where_numpy_is_preferred(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(BadPayload, match="numpy has no dtype bfloat16"):
        trip(torch.ones(2, dtype=torch.bfloat16), "numpy")
    for tensor in (_csr(torch.int64), _per_tensor(torch.qint8)):
        with pytest.raises(BadPayload, match="needs torch"):
            trip(tensor, "numpy")


def test_without_torch_tensors_are_arrays():
    """In a process that can't import torch."""
    program = """
import sys
sys.modules["torch"] = None
import numpy as np
from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire.blobs import Blob
from tensorcall.wire.errors import BadPayload
from tensorcall.wire.tensors import TensorReader, TensorWriter, is_tensor

arrays = [np.arange(6, dtype=">f4").reshape(2, 3), np.array("2020-01-01", "M8[D]"), np.float16(2), np.zeros((0, 2))]
writer = TensorWriter()
for i, array in enumerate(arrays):
    assert is_tensor(array)
    assert writer.add(array) == i
assert not is_tensor("text")
for prefer in (None, "torch", "numpy"):
    reader = TensorReader(writer.blobs, prefer)
    for i, array in enumerate(arrays):
        made = reader.get(i)
        assert type(made) is type(array) and made.dtype == array.dtype
        np.testing.assert_array_equal(made, array)

blob = Blob(pb.DTYPE_FLOAT32, (2,), memoryview(bytes(8)), requires_grad=True, container=pb.CONTAINER_TORCH_PARAMETER)
assert type(TensorReader([blob]).get(0)) is np.ndarray
try:
    TensorReader([Blob(pb.DTYPE_BITS8, (2,), memoryview(bytes(2)))]).get(0)
except BadPayload as error:
    assert "install torch" in str(error)
else:
    raise AssertionError
assert not [name for name in sys.modules if name.startswith("torch.")]
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_limits_and_check_agree_on_dimensions():
    assert check(Blob(pb.DTYPE_INT8, (1,) * limits.MAX_DIMENSIONS)) == 1
