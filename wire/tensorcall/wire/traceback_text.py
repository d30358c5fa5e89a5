"""An ExceptionTree as text, laid out as Python's traceback module would on the worker."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from tensorcall.v1 import error_pb2
from tensorcall.wire.tracebacks import short_name

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"
# Python's own limits: equal frames in a row, members of a group, nesting of groups.
_SAME_FRAMES = 3
_MAX_WIDTH = 15
_MAX_DEPTH = 10


class _Link(NamedTuple):
    introduction: str
    place: int


class _Printer:
    """Prints the nodes of one tree, each of them once: a tree from a peer may name a node any number of times."""

    def __init__(self, nodes: list[error_pb2.RemoteException]) -> None:
        self.nodes = nodes
        self.seen: set[int] = set()
        self.open = False

    def chain(self, index: int) -> list[_Link]:
        """The node and what led to it, first things first."""
        links = []
        while True:
            self.seen.add(index)
            node = self.nodes[index]
            if node.HasField("cause") and self.is_new(node.cause):
                links.append(_Link(_CAUSE, index))
                index = node.cause
            elif node.HasField("context") and not node.suppress_context and self.is_new(node.context):
                links.append(_Link(_CONTEXT, index))
                index = node.context
            else:
                return [_Link("", index), *reversed(links)]

    def is_new(self, index: int) -> bool:
        return index < len(self.nodes) and index not in self.seen

    def print(self, index: int, depth: int) -> Iterator[str]:
        """Prints a node and its causes; `depth` tells how far to indent and whether a group is around it."""
        if not self.is_new(index):
            if index < len(self.nodes):
                yield _indent(headline(self.nodes[index]) + "\n", depth)
            return
        for introduction, i in self.chain(index):
            node = self.nodes[i]
            yield _indent(introduction, depth)
            if node.members and depth > _MAX_DEPTH:
                yield _indent(f"... (max_group_depth is {_MAX_DEPTH})\n", depth)
            elif node.members:
                yield from self.group(node, depth)
            else:
                yield _indent(_stack("Traceback", node) + _last_lines(node), depth)

    def group(self, node: error_pb2.RemoteException, depth: int) -> Iterator[str]:
        """Prints an exception group; the outermost one is indented too, since its members hang on its margin."""
        outermost = depth == 0
        depth = max(depth, 1)
        stack = _indent(_stack("Exception Group Traceback", node), depth)
        # Where the whole tree's margin begins stands a plus.
        yield stack.replace("| ", "+ ", 1) if outermost else stack
        yield _indent(_last_lines(node), depth)
        margin = "  " * depth
        for i, member in enumerate(node.members):
            crowded = i == _MAX_WIDTH
            # A group that ends with a group shares its closing line.
            self.open = crowded or i == len(node.members) - 1
            yield f"{margin}{'  ' if i else '+-'}+---------------- {'...' if crowded else i + 1} ----------------\n"
            if crowded:
                left = len(node.members) - _MAX_WIDTH
                yield _indent(f"and {left} more exception{'s' if left > 1 else ''}\n", depth + 1)
                break
            yield from self.print(member, depth + 1)
        if self.open:
            yield f"{margin}  +------------------------------------\n"
            self.open = False


def format_tree(tree: error_pb2.ExceptionTree, index: int = 0) -> str:
    """Prints a node of a tree with its causes and members; "" if the tree has no frames.

    Unlike Python it marks no columns and prints each exception once.
    """
    if not any(node.frames for node in tree.exceptions):
        return ""
    return "".join(_Printer(list(tree.exceptions)).print(index, 0))


def headline(node: error_pb2.RemoteException) -> str:
    """The type and the message, as a traceback's last line has them."""
    name = node.type if node.module in ("builtins", "__main__", "") else f"{node.module}.{node.type}"
    return f"{name}: {node.message}" if node.message else name


def _stack(title: str, node: error_pb2.RemoteException) -> str:
    if not node.frames:
        return ""
    lines = [f"{title} (most recent call last):\n"]
    for _, group in groupby(node.frames, key=lambda frame: (frame.file, frame.line, frame.function)):
        frames = list(group)
        for frame in frames[:_SAME_FRAMES]:
            lines.append(f'  File "{frame.file}", line {frame.line}, in {short_name(frame)}\n')
            if frame.source:
                lines.append(f"    {frame.source}\n")
        more = len(frames) - _SAME_FRAMES
        if more > 0:
            lines.append(f"  [Previous line repeated {more} more time{'s' if more > 1 else ''}]\n")
    return "".join(lines)


def _last_lines(node: error_pb2.RemoteException) -> str:
    return "".join(
        f"{line}\n" for line in (headline(node), *(line for note in node.notes for line in note.split("\n")))
    )


def _indent(text: str, depth: int) -> str:
    return textwrap.indent(text, "  " * depth + "| ", lambda line: True) if depth else text
