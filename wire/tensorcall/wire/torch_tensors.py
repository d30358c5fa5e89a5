"""torch tensor ↔ Blob, of any layout. Imported only where torch is in use."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire import torch_quantized, torch_sparse
from tensorcall.wire.blobs import Blob
from tensorcall.wire.dtypes import Element
from tensorcall.wire.errors import Unencodable
from tensorcall.wire.limits import MAX_DIMENSIONS
from tensorcall.wire.torch_dense import ELEMENTS, bytes_of_tensor, decode_dense, first_line


def encode(tensor: torch.Tensor, table: list[Blob]) -> Blob:
    """Makes the blob of a tensor; it views the tensor's memory where that is on the CPU and contiguous.

    Args:
        tensor: an exact torch.Tensor or torch.nn.Parameter.
        table: where the parts of a sparse or quantised tensor are appended.

    Raises:
        Unencodable: the tensor has no form on the wire.
    """
    element = ELEMENTS.get(tensor.dtype)
    if element is None:
        raise Unencodable(f"dtype {tensor.dtype} has no form on the wire: .view() it as another type of its size")
    if tensor.is_nested:
        raise Unencodable(
            "a nested tensor has no form on the wire: send list(tensor.unbind()), or .to_padded_tensor(0)"
        )
    if tensor.is_meta:
        raise Unencodable("a tensor on the meta device has no elements: make it on a real device, or send its shape")
    grad = tensor.requires_grad
    container = pb.CONTAINER_TORCH_TENSOR if type(tensor) is torch.Tensor else pb.CONTAINER_TORCH_PARAMETER
    try:
        if tensor.is_cpu and tensor.layout is torch.strided and not element.quantized:
            shape = tuple(tensor.shape)
            if len(shape) > MAX_DIMENSIONS:
                raise Unencodable(f"a tensor has {len(shape)} dimensions, at most {MAX_DIMENSIONS} can be sent")
            data = bytes_of_tensor(tensor.detach() if grad else tensor, element)
            return Blob(element.number, shape, data, None, None, None, grad, "", container)
        blob = _encode_other(tensor, element, table)
    except RuntimeError as error:
        raise Unencodable(
            f"torch gives no access to the elements of this tensor ({first_line(error)}): send .detach().clone(), and "
            f"not from within a transform of torch.func"
        ) from error
    blob.requires_grad = grad
    blob.container = container
    return blob


def _encode_other(tensor: torch.Tensor, element: Element, table: list[Blob]) -> Blob:
    """Makes the blob of a tensor that is elsewhere, sparse or quantised."""
    device = "" if tensor.is_cpu else str(tensor.device)
    if device:
        tensor = tensor.detach().cpu()
    if tensor.is_mkldnn:
        # A layout for the kernels of one machine.
        tensor = tensor.to_dense()
    if element.quantized:
        blob = torch_quantized.encode(tensor, element, table)
    elif tensor.layout is torch.strided:
        blob = Blob(element.number, tuple(tensor.shape), bytes_of_tensor(tensor.detach(), element))
    else:
        blob = torch_sparse.encode(tensor, element, table)
    blob.device = device
    return blob


def decode(blob: Blob, element: Element, nbytes: int, part: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Makes the tensor that a blob describes.

    Args:
        blob: the blob, checked.
        element: its element type.
        nbytes: how many bytes its elements take.
        part: gives the tensor of a part by its index.

    Raises:
        BadPayload: torch has no such dtype, or elements or parts do not fit.
    """
    if blob.sparse is not None:
        tensor = torch_sparse.decode(blob, blob.sparse, part)
    elif blob.quantization is not None:
        tensor = torch_quantized.decode(blob, blob.quantization, part, nbytes)
    else:
        tensor = decode_dense(blob, element, nbytes)
    if blob.container == pb.CONTAINER_TORCH_PARAMETER:
        return torch.nn.Parameter(tensor, requires_grad=blob.requires_grad)
    if blob.requires_grad:
        tensor.requires_grad_()
    return tensor
