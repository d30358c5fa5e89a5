"""Splits tensors into chunks, and gathers chunks into tensors. See Chunk in handler_service.proto."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tensorcall.wire import tensors
from tensorcall.wire.blobs import Blob
from tensorcall.wire.calls import Chunked
from tensorcall.wire.errors import BadPayload, TooLarge
from tensorcall.wire.limits import CHUNK_BYTES


def split(chunked: Sequence[Chunked], chunk: int = CHUNK_BYTES) -> Iterator[tuple[int, int, memoryview]]:
    """Yields the chunks of tensors as (index of the tensor, offset in bytes, part), without copying."""
    for index, data in chunked:
        for offset in range(0, len(data), chunk):
            yield index, offset, data[offset : offset + chunk]


class Gathering:
    """The tensors of one message whose chunks are still coming.

    Memory is set aside when the message arrives and each chunk is copied to its place: the one copy of this side.
    """

    def __init__(self, blobs: Sequence[Blob], max_bytes: int | None = None) -> None:
        """Sets the memory aside.

        Args:
            blobs: the message's table; those that come in chunks get `data` that fills up.
            max_bytes: refuse more than this many bytes in all.

        Raises:
            BadPayload: a blob's shape and size do not fit.
            TooLarge: above `max_bytes`, or more than the machine can set aside.
        """
        self._blobs = blobs
        # Index of a tensor → how many of its bytes have come, for those that are not whole.
        self._received: dict[int, int] = {}
        sizes = {i: blob.chunked_size for i, blob in enumerate(blobs) if blob.chunked_size is not None}
        self.bytes = sum(sizes.values())
        if not sizes:
            return
        if max_bytes is not None and self.bytes > max_bytes:
            raise TooLarge(f"the tensors have {self.bytes:,} bytes in all; at most {max_bytes:,} are taken")
        for index, expected in sizes.items():
            self._set_aside(index, expected)

    def _set_aside(self, index: int, expected: int) -> None:
        blob = self._blobs[index]
        wanted = tensors.check(blob)
        if wanted != expected:
            raise BadPayload(
                f"tensor {index}: chunks of {expected:,} bytes are announced, its shape and dtype take {wanted:,}"
            )
        try:
            # Not a bytearray: that would write zeros to every page first, which costs as much as the chunks do.
            blob.data = np.empty(expected, np.uint8).data
        except (MemoryError, ValueError, OverflowError):
            raise TooLarge(f"tensor {index}: this machine can't set {expected:,} bytes aside") from None
        blob.owned = True
        blob.chunked_size = None
        if expected:
            self._received[index] = 0

    @property
    def complete(self) -> bool:
        """Whether all chunks have come."""
        return not self._received

    def add(self, tensor: int, offset: int, data: memoryview) -> None:
        """Copies one chunk to its place.

        Raises:
            BadPayload: for another tensor than those that come in chunks, out of order, or beyond the announced size.
        """
        received = self._received.get(tensor)
        if received is None:
            raise BadPayload(f"a chunk came for tensor {tensor}, which is whole or was not announced in chunks")
        if offset != received:
            raise BadPayload(f"tensor {tensor}: a chunk at byte {offset:,} came where byte {received:,} is next")
        target = self._blobs[tensor].data
        assert target is not None
        end = received + len(data)
        if end > len(target):
            raise BadPayload(f"tensor {tensor}: a chunk ends at byte {end:,}, beyond the announced {len(target):,}")
        target[received:end] = data
        if end == len(target):
            del self._received[tensor]
        else:
            self._received[tensor] = end
