"""What is too much. Both sides check, so that a bad value fails before it is sent."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# protobuf ends at 2 GiB; larger tensors come in chunks.
MAX_MESSAGE_BYTES = 1 * GIB
# A tensor above this size goes in chunks on a session; each is of this size. See docs/decisions, 12.
CHUNK_BYTES = 512 * KIB

MAX_DEPTH = 100
MAX_VALUES = 1 << 20
MAX_TENSORS = 1 << 16
MAX_DIMENSIONS = 64
MAX_BIG_INT_BYTES = 1 * MIB
MAX_CALL_ID_BYTES = 128
MAX_TYPE_TEXT_BYTES = 4096

# Trailers above 8 KiB get lost or replace the error in grpcio (measured); this leaves room for the rest of them.
MAX_STATUS_DETAIL_BYTES = 4 * KIB
# gRPC escapes what is not ASCII in the message itself, to nine bytes a character at worst.
MAX_STATUS_MESSAGE_CHARACTERS = 256
