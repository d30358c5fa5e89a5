from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch

from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire import dtypes
from tensorcall.wire.errors import BadPayload


def torch_dtypes() -> set[torch.dtype]:
    return {value for value in vars(torch).values() if isinstance(value, torch.dtype)}


@pytest.mark.filterwarnings("ignore:BComplex32 support is experimental:UserWarning")
@pytest.mark.parametrize("dtype", sorted(torch_dtypes(), key=str), ids=str)
def test_every_dtype_that_torch_can_make_is_in_the_table(dtype):
    try:
        torch.empty((2, 2), dtype=dtype)
    except (RuntimeError, TypeError):
        pytest.skip(f"torch makes no tensor of {dtype}")
    element = next(e for e in dtypes.ELEMENTS if getattr(torch, e.name, None) is dtype)
    assert element.itemsize == dtype.itemsize
    assert element.differentiable == (dtype.is_floating_point or dtype.is_complex)
    assert element.complex == dtype.is_complex
    assert dtypes.torch_dtype(element) is dtype


def test_the_table_has_every_number_of_the_contract_once():
    numbers = [element.number for element in dtypes.ELEMENTS]
    assert sorted(numbers) == sorted(set(pb.Dtype.values()) - {pb.DTYPE_UNSPECIFIED})


def test_names_are_those_of_the_contract():
    for element in dtypes.ELEMENTS:
        assert pb.Dtype.Name(element.number) == f"DTYPE_{element.name.upper()}"


def test_bit_is_another_name_of_uint1():
    bit = getattr(torch, "bit", None)
    if bit is None:
        pytest.skip("this torch has no torch.bit")
    assert dtypes.torch_dtype(dtypes.BY_NUMBER[pb.DTYPE_UINT1]) is bit


@pytest.mark.parametrize("code", "?bBhHiIlLqQefdFD")
def test_numpy_dtypes_are_found_in_both_byte_orders(code):
    dtype = np.dtype(code)
    element = dtypes.of_numpy(dtype)
    assert element is not None
    assert dtypes.of_numpy(dtype.newbyteorder(">")) is element
    assert dtypes.numpy_dtype(element) == dtype


@pytest.mark.parametrize("dtype", ["S3", "U3", "M8[s]", "m8[ns]", "V4", "i4,f4", "O"])
def test_types_that_only_numpy_has_have_no_element(dtype):
    assert dtypes.of_numpy(np.dtype(dtype)) is None


@pytest.mark.parametrize("name", ["quint4x2", "quint2x4"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (4,), (5,), (3, 5), (3, 0), (2, 3, 7)])
def test_rows_of_elements_that_share_bytes_are_sized_as_by_torch(name, shape):
    tensor = torch._empty_affine_quantized(shape, scale=1.0, zero_point=0, dtype=getattr(torch, name))
    element = dtypes.BY_NUMBER[pb.Dtype.Value(f"DTYPE_{name.upper()}")]
    assert element.nbytes(shape) == tensor.untyped_storage().nbytes()


def test_a_dtype_that_torch_lacks_is_named_together_with_torch(monkeypatch):
    monkeypatch.delattr(torch, "float8_e8m0fnu", raising=False)
    element = dtypes.BY_NUMBER[pb.DTYPE_FLOAT8_E8M0FNU]
    with pytest.raises(BadPayload, match=rf"torch {torch.__version__.split('+')[0]}.* has no dtype float8_e8m0fnu"):
        dtypes.torch_dtype(element)


def test_a_dtype_that_numpy_lacks_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(BadPayload, match=r"no dtype bfloat16: install torch \(or ml_dtypes\)"):
        dtypes.numpy_dtype(dtypes.BY_NUMBER[pb.DTYPE_BFLOAT16])


@pytest.mark.skipif(importlib.util.find_spec("ml_dtypes") is None, reason="ml_dtypes is not installed")
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "int4", "uint4"])
def test_ml_dtypes_fills_in_for_numpy(name):
    element = dtypes.BY_NUMBER[pb.Dtype.Value(f"DTYPE_{name.upper()}")]
    dtype = dtypes.numpy_dtype(element)
    assert dtype.name == name
    assert dtypes.of_numpy(dtype) is element
