"""Objects ↔ Value, with exact Python types on a round trip: a pair of inverse functions. See value.proto."""

from tensorcall.wire.value_reader import decode, decode_many, read_entry
from tensorcall.wire.value_writer import encode, encode_arguments

__all__ = ["decode", "decode_many", "encode", "encode_arguments", "read_entry"]
