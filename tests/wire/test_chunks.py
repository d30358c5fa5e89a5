from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire import calls, chunks
from tensorcall.wire.blobs import Blob
from tensorcall.wire.chunks import Gathering
from tensorcall.wire.errors import BadPayload, TooLarge

quick = settings(deadline=None, max_examples=100)


def announced(*sizes: int) -> list[Blob]:
    return [Blob(pb.DTYPE_UINT8, (size,), chunked_size=size) for size in sizes]


# --- split -----------------------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.tuples(st.integers(0, 10), st.binary(max_size=50))), st.integers(1, 60))
def test_chunks_are_the_tensors_in_order_without_gap(tensors: list[tuple[int, bytes]], chunk: int) -> None:
    found: list[tuple[int, bytes]] = []
    for index, data in tensors:
        parts = list(chunks.split([(index, memoryview(data))], chunk))
        assert [offset for _, offset, _ in parts] == list(range(0, len(data), chunk))
        assert all(0 < len(part) <= chunk for _, _, part in parts)
        assert all(part.obj is data for _, _, part in parts)
        found += [(number, bytes(part)) for number, _, part in parts]
    together = [(index, memoryview(data)) for index, data in tensors]
    assert [(index, bytes(part)) for index, _, part in chunks.split(together, chunk)] == found
    assert b"".join(part for _, part in found) == b"".join(data for _, data in tensors)


# --- gather ----------------------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.binary(max_size=40), max_size=4), st.data())
def test_any_chunking_in_any_interleaving_is_gathered(tensors: list[bytes], data: st.DataObject) -> None:
    blobs = announced(*map(len, tensors))
    gathering = Gathering(blobs)
    assert gathering.bytes == sum(map(len, tensors))
    queues = []
    for index, tensor in enumerate(tensors):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(tensor)), max_size=4)))
        ends = [*cuts, len(tensor)]
        queue = [(index, start, tensor[start:end]) for start, end in zip([0, *cuts], ends, strict=True) if start < end]
        queues.append(queue)
    order = data.draw(st.permutations([index for index, queue in enumerate(queues) for _ in queue]))
    for index in order:
        assert not gathering.complete
        number, offset, part = queues[index].pop(0)
        gathering.add(number, offset, memoryview(part))
    assert gathering.complete
    for blob, tensor in zip(blobs, tensors, strict=True):
        assert blob.data is not None
        assert bytes(blob.data) == tensor
        assert blob.owned
        assert blob.chunked_size is None


OBJECT: dict[str, Any] = {
    "large": torch.arange(1000),
    "small": torch.ones(2),
    "array": np.arange(500, dtype=">i4"),
    "bool": torch.tensor([True, False] * 50),
    "sparse": torch.eye(30).to_sparse(),
    "quantised": torch.quantize_per_tensor(torch.arange(100.0), 0.5, 3, torch.quint8),
}


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
def test_a_message_with_chunks_comes_back(chunk: int) -> None:
    encoded = calls.encode_payload(OBJECT, chunk_above=10)
    assert len(encoded.bytes) < 500
    payload = calls.decode_payload(encoded.bytes)
    gathering = Gathering(payload.blobs)
    for number, offset, part in chunks.split(encoded.chunked, chunk):
        assert not gathering.complete
        gathering.add(number, offset, part)
    assert gathering.complete
    made = payload.object()
    assert torch.equal(made["large"], OBJECT["large"])
    assert torch.equal(made["small"], OBJECT["small"])
    assert torch.equal(made["bool"], OBJECT["bool"])
    assert torch.equal(made["sparse"].to_dense(), torch.eye(30))
    assert torch.equal(made["quantised"].int_repr(), OBJECT["quantised"].int_repr())
    np.testing.assert_array_equal(made["array"], OBJECT["array"])
    # Made over the memory that was gathered, without another copy, and writable.
    data = payload.blobs[0].data
    assert data is not None
    assert np.shares_memory(np.frombuffer(data, np.uint8), made["large"].numpy())
    made["large"][0] = 5
    assert data[0] == 5
    made["array"][0] = 7
    made["bool"][0] = False


def test_without_its_chunks_an_object_is_refused() -> None:
    payload = calls.decode_payload(calls.encode_payload(torch.ones(100), chunk_above=0).bytes)
    with pytest.raises(BadPayload, match="its chunks have not come"):
        payload.object()


def test_nothing_to_gather_is_complete_at_once() -> None:
    gathering = Gathering([Blob(pb.DTYPE_UINT8, (3,), data=memoryview(b"abc"))])
    assert gathering.complete
    assert gathering.bytes == 0
    with pytest.raises(BadPayload, match="tensor 0, which is whole or was not announced"):
        gathering.add(0, 0, memoryview(b"abc"))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2**40)])
def test_a_tensor_without_elements_takes_no_chunk(shape: tuple[int, ...]) -> None:
    blobs = [Blob(pb.DTYPE_FLOAT32, shape, chunked_size=0)]
    gathering = Gathering(blobs)
    assert gathering.complete
    assert blobs[0].data is not None
    assert len(blobs[0].data) == 0
    with pytest.raises(BadPayload, match="whole or was not announced"):
        gathering.add(0, 0, memoryview(b""))


def test_an_empty_chunk_changes_nothing() -> None:
    gathering = Gathering(announced(2))
    gathering.add(0, 0, memoryview(b""))
    gathering.add(0, 0, memoryview(b"ab"))
    assert gathering.complete


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ((0, 1, b"a"), "tensor 0: a chunk at byte 1 came where byte 2 is next"),
        ((0, 0, b"ab"), "tensor 0: a chunk at byte 0 came where byte 2 is next"),
        ((0, 3, b"a"), "tensor 0: a chunk at byte 3 came where byte 2 is next"),
        ((0, 2**63, b"a"), "came where byte 2 is next"),
        ((0, 2, b"abc"), "tensor 0: a chunk ends at byte 5, beyond the announced 4"),
        ((1, 0, b"a"), "a chunk came for tensor 1, which is whole"),
        ((2, 0, b"a"), "a chunk came for tensor 2, which is whole"),
        ((9, 0, b"a"), "a chunk came for tensor 9, which is whole"),
        ((2**32 - 1, 0, b"a"), "a chunk came for tensor 4294967295"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(chunk: tuple[int, int, bytes], message: str) -> None:
    blobs = [*announced(4, 1), Blob(pb.DTYPE_UINT8, (1,), data=memoryview(b"x"))]
    gathering = Gathering(blobs)
    gathering.add(0, 0, memoryview(b"ab"))
    gathering.add(1, 0, memoryview(b"c"))
    with pytest.raises(BadPayload, match=message):
        gathering.add(chunk[0], chunk[1], memoryview(chunk[2]))
    # It can go on: nothing was changed.
    gathering.add(0, 2, memoryview(b"cd"))
    assert gathering.complete
    assert bytes(blobs[0].data or b"") == b"abcd"


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (Blob(pb.DTYPE_FLOAT32, (3,), chunked_size=11), "tensor 0: chunks of 11 bytes are announced, .* take 12"),
        (Blob(pb.DTYPE_FLOAT32, (), chunked_size=2**64 - 1), "are announced, its shape and dtype take 4"),
        (Blob(pb.DTYPE_FLOAT32, (0,), chunked_size=4), "take 0"),
        (Blob(pb.DTYPE_FLOAT32, (-3,), chunked_size=12), "negative"),
        (Blob(0, (3,), chunked_size=12), "dtype 0"),
        (Blob(pb.DTYPE_UINT8, (2**62, 2), chunked_size=2**63), "overflows"),
        (Blob(pb.DTYPE_UINT8, (2**70,), chunked_size=2**70), "overflows"),
    ],
)
def test_announcements_that_do_not_fit_are_refused(blob: Blob, message: str) -> None:
    with pytest.raises(BadPayload, match=message):
        Gathering([blob])


def test_what_the_machine_has_no_memory_for_is_refused() -> None:
    size = 2**62
    with pytest.raises(TooLarge, match="this machine can't set 4,611,686,018,427,387,904 bytes aside"):
        Gathering([Blob(pb.DTYPE_UINT8, (size,), chunked_size=size)])


def test_a_limit_holds_for_all_tensors_together() -> None:
    assert not Gathering(announced(5, 5), max_bytes=10).complete
    blobs = announced(5, 6)
    with pytest.raises(TooLarge, match="have 11 bytes in all; at most 10 are taken"):
        Gathering(blobs, max_bytes=10)
    # Before any memory is set aside.
    assert blobs[0].data is None
    with pytest.raises(TooLarge):
        Gathering(announced(1), max_bytes=0)
    assert Gathering(announced(0), max_bytes=0).complete
