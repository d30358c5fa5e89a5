"""What both sides agree on: tensors ↔ blobs, objects ↔ payloads, exceptions ↔ statuses."""

from tensorcall.wire.exceptions import register_exception
from tensorcall.wire.registry import register

__all__ = ["register", "register_exception"]
