"""Sends tensors through the table and back, as a message would."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from tensorcall.wire.blobs import Blob
from tensorcall.wire.tensors import TensorReader, TensorWriter, check


def received(blobs: list[Blob], *, owned: bool = False) -> list[Blob]:
    """Copies the blobs as they come out of a message (read-only, at any address), or out of chunks (owned)."""
    return [dataclasses.replace(blob, data=_carried(blob.data, owned=owned), owned=owned) for blob in blobs]


def _carried(data: memoryview | None, *, owned: bool) -> memoryview | None:
    if data is None:
        return None
    assert data.format == "B"
    assert data.ndim == 1
    if owned:
        return memoryview(bytearray(data))
    # A message's header moves the elements to odd addresses.
    return memoryview(b"#" + bytes(data))[1:]


def trip(tensor: object, prefer: Literal["torch", "numpy"] | None = None, *, owned: bool = False) -> Any:
    """Writes one tensor and reads it again."""
    writer = TensorWriter()
    index = writer.add(tensor)
    blobs = received(writer.blobs, owned=owned)
    for blob in blobs:
        assert len(blob.data or b"") == check(blob)
    return TensorReader(blobs, prefer).get(index)
