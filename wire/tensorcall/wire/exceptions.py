"""Exceptions ↔ ExceptionTree: a pair of inverse functions, and what belongs to them.

to_tree describes an exception with its causes, contexts, members, notes and frames; from_tree gives the caller an
instance of the original class that is a RemoteError, too. shrink makes a tree fit a status.
"""

from tensorcall.wire.exception_classes import register_exception
from tensorcall.wire.exception_reader import from_tree
from tensorcall.wire.exception_shrinking import shrink
from tensorcall.wire.exception_writer import to_tree

__all__ = ["from_tree", "register_exception", "shrink", "to_tree"]
