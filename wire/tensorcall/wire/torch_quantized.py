"""Quantised torch tensor ↔ Blob. Scales and zero points by channel are dense blobs of the same table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire import dtypes
from tensorcall.wire.blob_checks import check_quantization, check_scales, check_zero_points
from tensorcall.wire.blobs import Blob, Quantization
from tensorcall.wire.dtypes import Element
from tensorcall.wire.errors import BadPayload, Unencodable
from tensorcall.wire.numpy_arrays import data_of
from tensorcall.wire.torch_dense import append, bytes_of_tensor
from tensorcall.wire.torch_warnings import hush

_SCHEMES: dict[torch.qscheme, int] = {
    torch.per_tensor_affine: pb.QUANTIZATION_SCHEME_PER_TENSOR_AFFINE,
    torch.per_channel_affine: pb.QUANTIZATION_SCHEME_PER_CHANNEL_AFFINE,
    torch.per_channel_affine_float_qparams: pb.QUANTIZATION_SCHEME_PER_CHANNEL_AFFINE_FLOAT_QPARAMS,
}


def encode(tensor: torch.Tensor, element: Element, table: list[Blob]) -> Blob:
    """Makes the blob of a quantised CPU tensor and appends scales and zero points by channel to the table.

    Raises:
        Unencodable: it has no scale, or is a slice that torch has left in disorder.
        RuntimeError: torch can't make it contiguous.
    """
    shape = tuple(tensor.shape)
    try:
        scheme = _SCHEMES[tensor.qscheme()]
    except (RuntimeError, KeyError):
        raise Unencodable(
            "a quantised tensor without a scale has no form on the wire: make it by torch.quantize_per_tensor or "
            "torch.quantize_per_channel"
        ) from None
    hush(tensor.dtype)
    if element.per_byte == 1:
        tensor = tensor.contiguous()
    nbytes = element.nbytes(shape)
    if element.per_byte > 1 and not (tensor.is_contiguous() and tensor.untyped_storage().nbytes() == nbytes):
        raise Unencodable(f"a view of a {element.name} tensor has no form on the wire: .dequantize() it first")
    data = bytes_of_tensor(_stored(tensor, nbytes), dtypes.BY_NUMBER[pb.DTYPE_UINT8])
    channels: tuple[torch.Tensor, ...] = ()
    if scheme == pb.QUANTIZATION_SCHEME_PER_TENSOR_AFFINE:
        quantization = Quantization(scheme, tensor.q_scale(), tensor.q_zero_point())
    else:
        quantization = Quantization(scheme, axis=tensor.q_per_channel_axis())
        channels = (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
    try:
        check_quantization(element, shape, quantization)
        if channels:
            _check_channels(element, shape, quantization, *channels)
    except BadPayload as error:
        # torch checks little when it quantises, and slices a tensor without its scales.
        raise Unencodable(f"{error}; or .dequantize() it first") from None
    if channels:
        quantization.scales, quantization.zero_points = append(table, *channels)
    return Blob(element.number, shape, data, quantization=quantization)


def decode(blob: Blob, quantization: Quantization, part: Callable[[int], torch.Tensor], nbytes: int) -> torch.Tensor:
    """Makes the tensor of a quantised blob that was checked, by one copy.

    Args:
        blob: the quantised blob.
        quantization: its parameters.
        part: gives the tensor of a part by its index.
        nbytes: how many bytes its elements take.

    Raises:
        BadPayload: the parameters do not fit, or there are not as many bytes as there should be.
    """
    element = dtypes.BY_NUMBER[blob.dtype]
    dtype = dtypes.torch_dtype(element)
    data = data_of(blob, nbytes)
    hush(dtype)
    if quantization.scheme == pb.QUANTIZATION_SCHEME_PER_TENSOR_AFFINE:
        tensor = torch._empty_affine_quantized(
            blob.shape, scale=quantization.scale, zero_point=quantization.zero_point, dtype=dtype, device="cpu"
        )
    else:
        scales, zero_points = part(quantization.scales), part(quantization.zero_points)
        _check_channels(element, blob.shape, quantization, scales, zero_points)
        tensor = torch._empty_per_channel_affine_quantized(
            blob.shape, scales=scales, zero_points=zero_points, axis=quantization.axis, dtype=dtype, device="cpu"
        )
    if nbytes:
        # Beyond the end of the storage, should torch size it in another way some day, set_ would make it grow.
        assert tensor.untyped_storage().nbytes() == nbytes
        _stored(tensor, nbytes).numpy()[:] = np.frombuffer(data, np.uint8)
    return tensor


def _stored(tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
    """Views the stored integers as bytes. Not by .view(torch.uint8), which ends the process (torch 2.15)."""
    flat = torch.empty(0, dtype=torch.uint8, device="cpu")
    return flat.set_(tensor.untyped_storage(), tensor.storage_offset() * tensor.itemsize, (nbytes,), (1,))


def _check_channels(
    element: Element,
    shape: tuple[int, ...],
    quantization: Quantization,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
) -> None:
    """Checks scales and zero points by channel.

    Raises:
        BadPayload: they do not fit the shape or the dtype.
    """
    channels = [shape[quantization.axis]]
    if list(scales.shape) != channels or list(zero_points.shape) != channels:
        raise BadPayload(
            f"axis {quantization.axis} of a quantised tensor has {channels[0]} channels, but the scales have the shape "
            f"{list(scales.shape)} and the zero points {list(zero_points.shape)}: send one of each for each channel"
        )
    floats = (torch.float32, torch.float64)
    affine = quantization.scheme == pb.QUANTIZATION_SCHEME_PER_CHANNEL_AFFINE
    if scales.dtype not in floats or zero_points.dtype not in ((torch.int64, torch.int32) if affine else floats):
        raise BadPayload(
            f"scales are {scales.dtype} and zero points {zero_points.dtype}: send scales in float32 or float64, zero "
            f"points in {'int64 or int32' if affine else 'float32 or float64'}"
        )
    if not channels[0]:
        return
    check_scales(scales.min().item(), scales.max().item())
    if affine:
        check_zero_points(element, int(zero_points.min().item()), int(zero_points.max().item()))
    elif not bool(zero_points.isfinite().all()):
        raise BadPayload("a zero point of a quantised tensor is not finite")
