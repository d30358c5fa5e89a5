"""Whether a blob describes a tensor that can be: what is found out without torch and without looking at elements."""

from __future__ import annotations

import math

from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire import dtypes, numpy_types
from tensorcall.wire.blobs import Blob, Quantization
from tensorcall.wire.dtypes import Element
from tensorcall.wire.errors import BadPayload
from tensorcall.wire.limits import MAX_DIMENSIONS

TORCH_CONTAINERS = frozenset({pb.CONTAINER_TORCH_TENSOR, pb.CONTAINER_TORCH_PARAMETER})
NUMPY_CONTAINERS = frozenset({pb.CONTAINER_NUMPY_ARRAY, pb.CONTAINER_NUMPY_SCALAR})

# What torch and numpy count bytes and elements in.
_MAX_INT64 = 2**63 - 1

_ZERO_POINTS = {pb.DTYPE_QINT8: (-128, 127), pb.DTYPE_QINT32: (-(2**31), 2**31 - 1)}


def check(blob: Blob) -> int:
    """Checks dtype, shape, layout, container and whether gradients are possible, but not the elements.

    Returns:
        How many bytes the elements take: what `len(blob.data)` has to be, or the size of the chunks; 0 for a sparse
        blob, whose elements are in its parts.

    Raises:
        BadPayload: no tensor can be like that; the message tells what is wrong and what to send instead.
    """
    element = dtypes.BY_NUMBER.get(blob.dtype)
    if element is None:
        raise BadPayload(f"dtype {blob.dtype} is none that this side knows: send one of tensorcall.v1.Dtype")
    shape = blob.shape
    if len(shape) > MAX_DIMENSIONS:
        raise BadPayload(f"a tensor has {len(shape)} dimensions, at most {MAX_DIMENSIONS} are taken: flatten it")
    # Apart from their own product, that of those that are not 0: strides are made of them.
    count = space = 1
    for extent in shape:
        if extent < 0:
            raise BadPayload(f"the shape {list(shape)} has a negative extent")
        count *= extent
        space *= extent or 1
    itemsize = element.itemsize
    if element is dtypes.NUMPY:
        itemsize = _numpy_itemsize(blob)
    elif blob.numpy_dtype:
        _check_big_endian(blob, element)
    if space * itemsize > _MAX_INT64:
        raise BadPayload(f"the shape {list(shape)} of {element.name} overflows 64 bits: send several tensors")
    if blob.requires_grad:
        _check_grad(blob, element)
    if blob.container > pb.CONTAINER_TORCH_PARAMETER or blob.container < 0:
        _check_numpy_container(blob)
    if blob.sparse is not None:
        return _check_sparse(blob, element)
    if element.quantized or blob.quantization is not None:
        return _check_quantized(blob, element)
    return count * itemsize


def _numpy_itemsize(blob: Blob) -> int:
    if blob.container in TORCH_CONTAINERS:
        raise BadPayload("torch has no tensors of DTYPE_NUMPY: set the container to CONTAINER_NUMPY_ARRAY")
    itemsize = numpy_types.parse(blob.numpy_dtype).itemsize
    # Any number of such elements would fit into a message of no size.
    if not itemsize and blob.container != pb.CONTAINER_NUMPY_SCALAR:
        raise BadPayload(f"elements of numpy_dtype {blob.numpy_dtype!r} take no space: send the shape instead")
    return itemsize


def _check_big_endian(blob: Blob, element: Element) -> None:
    big = element.numpy.newbyteorder(">").str if element.numpy is not None and element.itemsize > 1 else ""
    if blob.numpy_dtype != big:
        allowed = f"{big!r} or nothing" if big else "nothing"
        raise BadPayload(f"with {element.name}, numpy_dtype is to be {allowed}, not {blob.numpy_dtype!r:.100}")


def _check_grad(blob: Blob, element: Element) -> None:
    if not element.differentiable:
        raise BadPayload(f"requires_grad is set on {element.name}: only floating and complex types have gradients")
    if blob.container in NUMPY_CONTAINERS:
        raise BadPayload("requires_grad is set on a numpy array, which has no gradient: unset it")


def _check_numpy_container(blob: Blob) -> None:
    if blob.container not in NUMPY_CONTAINERS:
        raise BadPayload(
            f"container {blob.container} is none that this side knows: send one of tensorcall.v1.Container"
        )
    if blob.sparse is not None or blob.quantization is not None:
        raise BadPayload("numpy has neither sparse nor quantised arrays: set the container to CONTAINER_TORCH_TENSOR")
    if blob.container == pb.CONTAINER_NUMPY_SCALAR and blob.shape:
        raise BadPayload(f"a numpy scalar has the shape {list(blob.shape)}: send it without a shape")


def _check_sparse(blob: Blob, element: Element) -> int:
    sparse = blob.sparse
    assert sparse is not None
    if sparse.kind == pb.SPARSE_KIND_UNSPECIFIED or sparse.kind not in pb.SparseKind.values():
        raise BadPayload(
            f"sparse kind {sparse.kind} is none that this side knows: send one of tensorcall.v1.SparseKind"
        )
    if element.quantized or element is dtypes.NUMPY or blob.quantization is not None:
        raise BadPayload(f"torch has no sparse tensors of {element.name}: send a dense one")
    if blob.data is not None or blob.chunked_size is not None:
        raise BadPayload("a sparse tensor has elements of its own: put them into the blob that `values` names")
    return 0


def _check_quantized(blob: Blob, element: Element) -> int:
    if not element.quantized:
        raise BadPayload(f"a tensor of {element.name} has a quantization: send a quantised dtype, or unset it")
    if blob.quantization is None:
        raise BadPayload(f"a tensor of {element.name} has no quantization: set its scheme and scale")
    check_quantization(element, blob.shape, blob.quantization)
    return element.nbytes(blob.shape)


def check_quantization(element: Element, shape: tuple[int, ...], quantization: Quantization) -> None:
    """Checks how a tensor is quantised, apart from the scales and zero points by channel.

    torch would take any axis and zero point here and read beyond the ends of its tables later.

    Raises:
        BadPayload: no tensor can be quantised like that.
    """
    scheme = quantization.scheme
    if scheme == pb.QUANTIZATION_SCHEME_PER_TENSOR_AFFINE:
        check_scales(quantization.scale, quantization.scale)
        check_zero_points(element, quantization.zero_point, quantization.zero_point)
        return
    if scheme == pb.QUANTIZATION_SCHEME_PER_CHANNEL_AFFINE:
        possible = element.per_byte == 1
    else:
        possible = scheme == pb.QUANTIZATION_SCHEME_PER_CHANNEL_AFFINE_FLOAT_QPARAMS
        # torch makes qint32 ones as well, and dies of an illegal instruction when it reads them.
        possible = possible and element.number != pb.DTYPE_QINT32
    if not possible:
        raise BadPayload(
            f"torch does not quantise {element.name} by scheme {scheme}: send another dtype, or another one of "
            f"tensorcall.v1.QuantizationScheme"
        )
    if quantization.axis >= len(shape):
        raise BadPayload(f"axis {quantization.axis} of a quantised tensor of {len(shape)} dimensions: count from 0")


def check_scales(low: float, high: float) -> None:
    """Checks the range of the scales of a quantised tensor.

    Raises:
        BadPayload: one is not a positive, finite number.
    """
    # So written that NaN fails.
    if not (low > 0 and high < math.inf):
        raise BadPayload(f"a quantised tensor has scales from {low} to {high}: each is to be positive and finite")


def check_zero_points(element: Element, low: int, high: int) -> None:
    """Checks the range of the zero points of a quantised tensor, as torch.quantize_per_tensor does.

    Raises:
        BadPayload: one is not among the integers that are stored.
    """
    floor, ceiling = _ZERO_POINTS.get(pb.Dtype.ValueType(element.number), (0, 255))
    if low < floor or high > ceiling:
        raise BadPayload(
            f"a tensor of {element.name} has zero points from {low} to {high}: each is to be from {floor} to {ceiling}"
        )
