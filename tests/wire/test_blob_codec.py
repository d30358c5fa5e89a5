from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from support.messages import LENGTH, VARINT, damaged, field, messages, rewritten, varint
from support.reference import blob_of, exact, tensor_blob_of

from tensorcall.v1 import tensor_pb2
from tensorcall.v1.tensor_pb2 import ChunkedStorage, Quantization, SharedStorage, SparseLayout, TensorBlob
from tensorcall.wire import blob_codec
from tensorcall.wire.blobs import Blob
from tensorcall.wire.errors import BadPayload
from tensorcall.wire.limits import MAX_DIMENSIONS
from tensorcall.wire.tensors import TensorReader, TensorWriter

quick = settings(deadline=None, max_examples=150)

BLOBS = messages(TensorBlob, without={"tensorcall.v1.TensorBlob.shared"})


def decode(data: bytes) -> Blob:
    return blob_codec.decode(data, memoryview(data), 0, len(data))


def encode(blob: Blob, chunk_above: int | None = None) -> bytes:
    return b"".join(blob_codec.encode(blob, chunk_above))


def fields_of(blob: Blob) -> Any:
    return exact(list(dataclasses.asdict(dataclasses.replace(blob, data=None)).values())), exact(blob.data)


# --- as the generated class ------------------------------------------------------------------------------------------


@quick
@given(BLOBS)
def test_written_as_by_the_generated_class(message: TensorBlob) -> None:
    blob = blob_of(message)
    assert encode(blob) == message.SerializeToString(deterministic=True)
    assert tensor_blob_of(blob) == message or message.quantization.scale != message.quantization.scale


@quick
@given(st.data())
def test_read_however_it_is_written(data: st.DataObject) -> None:
    message = data.draw(BLOBS)
    written = data.draw(rewritten(message.DESCRIPTOR, message.SerializeToString()))
    assert fields_of(decode(written)) == fields_of(blob_of(message))


@pytest.mark.parametrize("shape", [[], [0], [2**63 - 1, 1], [-1], [-(2**63), 3], [127, 128, 16383, 16384]])
@pytest.mark.parametrize("packed", [True, False])
def test_shapes(shape: list[int], packed: bool) -> None:
    """Extents are signed, so that a negative one is refused for what it is, and not taken for a huge one."""
    message = TensorBlob(shape=shape)
    assert encode(Blob(0, tuple(shape))) == message.SerializeToString()
    data = message.SerializeToString()
    if not packed:
        data = b"".join(field(2, VARINT, varint(extent % 2**64)) for extent in shape)
    assert decode(data).shape == tuple(shape)


def test_zeros_are_left_out_but_not_the_negative_one() -> None:
    for scale in (0.0, -0.0):
        message = TensorBlob(quantization=Quantization(scale=scale))
        assert encode(blob_of(message)) == message.SerializeToString()
        quantization = decode(message.SerializeToString()).quantization
        assert quantization is not None
        assert exact(quantization.scale) == exact(scale)


# --- chunks ----------------------------------------------------------------------------------------------------------


@quick
@given(BLOBS, st.sampled_from([0, 1, 5, 127, 128]))
def test_large_elements_are_announced_and_left_out(message: TensorBlob, chunk_above: int) -> None:
    blob = blob_of(message)
    if len(message.data) > chunk_above:
        message.chunked.size = len(message.data)
    assert encode(blob, chunk_above) == message.SerializeToString(deterministic=True)


def test_elements_are_not_copied_before_the_message_is_joined() -> None:
    array = np.arange(1000, dtype=np.int32)
    tensor = torch.arange(1000)
    for source, memory in ((array, array), (tensor, tensor.numpy())):
        writer = TensorWriter()
        writer.add(source)
        views = [part for part in blob_codec.encode(writer.blobs[0]) if isinstance(part, memoryview)]
        assert [len(view) for view in views] == [memory.nbytes]
        assert np.shares_memory(np.frombuffer(views[0], np.uint8), memory)


def test_elements_are_not_copied_when_the_message_is_read() -> None:
    data = TensorBlob(dtype=2, shape=[3], data=b"abc").SerializeToString()
    view = decode(data).data
    assert view is not None
    assert view.obj is data
    assert view.readonly
    assert not decode(data).owned


# --- where it differs from the generated class -----------------------------------------------------------------------


def test_of_repeated_fields_the_last_one_counts_where_protobuf_merges_messages() -> None:
    first = TensorBlob(sparse=SparseLayout(kind=1, values=3), chunked=ChunkedStorage(size=5)).SerializeToString()
    second = TensorBlob(sparse=SparseLayout(indices=4), chunked=ChunkedStorage()).SerializeToString()
    merged = TensorBlob.FromString(first + second)
    assert (merged.sparse.kind, merged.sparse.indices, merged.chunked.size) == (1, 4, 5)
    assert fields_of(decode(first + second)) == fields_of(blob_of(TensorBlob.FromString(second)))


def test_of_a_oneof_the_last_one_counts() -> None:
    messages_ = [
        TensorBlob(data=b"abc"),
        TensorBlob(chunked=ChunkedStorage(size=5)),
        TensorBlob(sparse=SparseLayout(values=1)),
        TensorBlob(quantization=Quantization(scale=2.0)),
    ]
    for first in messages_:
        for second in messages_:
            data = first.SerializeToString() + second.SerializeToString()
            if first is not second or first is messages_[0]:
                assert fields_of(decode(data)) == fields_of(blob_of(TensorBlob.FromString(data)))


def test_numbers_beyond_32_bits_are_kept_where_protobuf_cuts_them() -> None:
    """They name no dtype and no blob: cut, they might."""
    for number in (2**32 + 1, 2**64 - 1):
        data = field(1, VARINT, varint(number)) + field(10, VARINT, varint(number))
        blob = decode(data + field(6, LENGTH, field(2, VARINT, varint(number))))
        assert blob.dtype == blob.container == number
        assert blob.sparse is not None
        assert blob.sparse.values == number
        with pytest.raises(BadPayload, match=f"dtype {number}"):
            TensorReader([blob]).get(0)


def test_shared_memory_is_refused() -> None:
    with pytest.raises(BadPayload, match="shares none"):
        decode(TensorBlob(shared=SharedStorage(segment=1)).SerializeToString())


# --- garbage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_too_many_dimensions_are_refused_before_they_take_memory(packed: bool) -> None:
    message = TensorBlob(shape=[1] * MAX_DIMENSIONS)
    assert len(decode(message.SerializeToString()).shape) == MAX_DIMENSIONS
    one = field(2, LENGTH, b"\1") if packed else field(2, VARINT, b"\1")
    for data in (message.SerializeToString() + one, one * 65, field(2, LENGTH, b"\1" * 65)):
        with pytest.raises(BadPayload, match="more than 64 dimensions"):
            decode(data)


def test_a_shape_ends_where_its_field_ends() -> None:
    with pytest.raises(BadPayload, match="truncated"):
        decode(field(2, LENGTH, b"\x01\x80") + field(1, VARINT, b"\1"))


FULL = TensorBlob(
    dtype=tensor_pb2.DTYPE_QUINT8,
    shape=[2, 300],
    data=b"x" * 200,
    quantization=Quantization(scheme=1, scale=0.5, zero_point=-3, scales=1, zero_points=2, axis=1),
    requires_grad=True,
    device="cuda:0",
    container=1,
    numpy_dtype=">f4",
).SerializeToString()


def test_one_that_ends_too_early_is_refused() -> None:
    """Or is another, if it ends between two fields."""
    refused = 0
    for end in range(len(FULL)):
        try:
            blob = decode(FULL[:end])
        except BadPayload:
            refused += 1
        else:
            assert encode(blob) == FULL[:end]
    assert refused == len(FULL) - 8


@settings(deadline=None, max_examples=400)
@given(st.binary(max_size=60) | BLOBS.flatmap(lambda message: damaged(message.SerializeToString())))
def test_of_garbage_comes_a_tensor_or_a_bad_payload(data: bytes) -> None:
    with contextlib.suppress(BadPayload):
        TensorReader([decode(data)]).get(0)
