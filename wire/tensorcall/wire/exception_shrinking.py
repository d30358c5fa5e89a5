"""Fits an ExceptionTree into a limit: the least telling parts go first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from tensorcall.v1 import error_pb2, value_pb2
from tensorcall.wire.texts import fit
from tensorcall.wire.tracebacks import shorten

# What a node takes besides its own bytes: its tag and length.
_NODE_OVERHEAD = 6


def shrink(tree: error_pb2.ExceptionTree, limit: int) -> error_pb2.ExceptionTree:
    """Copies a tree, leaving out as much as must be for its ByteSize() to be at most `limit`; then it is `truncated`.

    What is huge is cut first. Then go, each only as far as needed: sources of frames, attributes, frames in the middle,
    contexts, far causes, notes, arguments. The first node's type, module and a start of its message stay, unless
    the limit is below some 100 bytes.
    """
    small = error_pb2.ExceptionTree()
    small.CopyFrom(tree)
    if small.ByteSize() <= limit:
        return small
    small.truncated = True
    nodes = small.exceptions
    steps: tuple[Callable[[], None], ...] = (
        # One huge text must not cost everything else.
        lambda: _cut_texts(nodes, max(limit // 4, 100)),
        lambda: _drop_sources(nodes[1:]),
        lambda: _drop_sources(nodes[:1]),
        lambda: _drop_attributes(small, limit),
        lambda: _shorten_frames(nodes, 10),
        lambda: _shorten_frames(nodes, 3),
        lambda: _drop_contexts(small, limit),
        lambda: _cut_texts(nodes, max(limit // 16, 100)),
        lambda: _shorten_frames(nodes, 1),
        lambda: _drop_causes(small, limit),
        lambda: _clear(nodes, "notes"),
        lambda: _clear(nodes, "args", "inexact_args"),
        lambda: _clear(nodes, "frames"),
    )
    for step in steps if nodes else ():
        step()
        if small.ByteSize() <= limit:
            return small
    return _least(tree, limit)


def _cut_texts(nodes: Iterable[error_pb2.RemoteException], size: int) -> None:
    """Cuts messages, notes and arguments that take more than `size` bytes."""
    for node in nodes:
        node.message = fit(node.message, size)
        notes = [fit(note, size) for note in node.notes]
        node.ClearField("notes")
        node.notes.extend(notes)
        for index, arg in enumerate(node.args):
            if arg.ByteSize() > size + 8:  # a text of that size still is one
                kind = arg.WhichOneof("kind")
                text = fit(arg.string, size) if kind == "string" else f"<a {kind} of {arg.ByteSize()} bytes>"
                arg.CopyFrom(value_pb2.Value(string=text))
                if index not in node.inexact_args:
                    node.inexact_args.append(index)


def _drop_sources(nodes: Iterable[error_pb2.RemoteException]) -> None:
    for node in nodes:
        for frame in node.frames:
            frame.ClearField("source")


def _drop_attributes(tree: error_pb2.ExceptionTree, limit: int) -> None:
    """Drops the largest first, until there is nothing left to gain."""
    excess = tree.ByteSize() - limit
    sizes = [
        (value.ByteSize() + len(name), index, name)
        for index, node in enumerate(tree.exceptions)
        for name, value in node.attributes.items()
    ]
    for size, index, name in sorted(sizes, reverse=True):
        if excess <= 0:
            return
        del tree.exceptions[index].attributes[name]
        excess -= size


def _shorten_frames(nodes: Iterable[error_pb2.RemoteException], keep: int) -> None:
    for node in nodes:
        frames = shorten(list(node.frames), keep)
        if len(frames) < len(node.frames):
            node.ClearField("frames")
            node.frames.extend(frames)


def _clear(
    nodes: Iterable[error_pb2.RemoteException], *names: Literal["notes", "args", "inexact_args", "frames"]
) -> None:
    for node in nodes:
        for name in names:
            node.ClearField(name)


def _drop_contexts(tree: error_pb2.ExceptionTree, limit: int) -> None:
    """Drops what led here by contexts alone, the farthest first."""
    chain = _reach(list(tree.exceptions), [0], contexts=False)
    everything = _reach(list(tree.exceptions), chain, contexts=True)
    _keep_nodes(tree, chain, everything[len(chain) :], limit)


def _drop_causes(tree: error_pb2.ExceptionTree, limit: int) -> None:
    """Drops causes and members, the farthest first, and whatever else is left."""
    _keep_nodes(tree, [0], _reach(list(tree.exceptions), [0], contexts=False)[1:], limit)


def _reach(nodes: list[error_pb2.RemoteException], start: list[int], *, contexts: bool) -> list[int]:
    """Lists the nodes that can be reached by causes and members, and by contexts if wanted; nearest first."""
    found = list(start)
    seen = set(start)
    for index in found:  # grows as it is walked
        node = nodes[index]
        near = [*node.members, *([node.cause] if node.HasField("cause") else [])]
        if contexts and node.HasField("context"):
            near.append(node.context)
        for i in near:
            if i < len(nodes) and i not in seen:
                seen.add(i)
                found.append(i)
    return found


def _keep_nodes(tree: error_pb2.ExceptionTree, sure: list[int], more: list[int], limit: int) -> None:
    """Keeps the `sure` nodes and as many of `more`, from the first on, as fit."""
    nodes = tree.exceptions
    room = limit - 16 - len(tree.worker.encode()) - len(tree.error_id.encode())
    room -= sum(nodes[index].ByteSize() + _NODE_OVERHEAD for index in sure)
    kept = list(sure)
    for index in more:
        room -= nodes[index].ByteSize() + _NODE_OVERHEAD
        if room < 0:
            break
        kept.append(index)
    place = {old: new for new, old in enumerate(kept)}
    chosen = error_pb2.ExceptionTree(exceptions=[nodes[index] for index in kept]).exceptions
    for node in chosen:
        cause, context = place.get(node.cause), place.get(node.context)
        if cause is not None and node.HasField("cause"):
            node.cause = cause
        else:
            node.ClearField("cause")
        if context is not None and node.HasField("context"):
            node.context = context
        else:
            node.ClearField("context")
        members = [place[old] for old in node.members if old in place]
        node.ClearField("members")
        node.members.extend(members)
    del nodes[:]
    nodes.extend(chosen)


def _least(tree: error_pb2.ExceptionTree, limit: int) -> error_pb2.ExceptionTree:
    """Keeps what tells most: where to get the rest, the type, and as much of the message as fits."""
    first = tree.exceptions[0] if tree.exceptions else error_pb2.RemoteException()
    bases = first.bases if sum(map(len, first.bases)) < 200 else []
    for size in (limit // 4, 16, 4, 0):
        least = error_pb2.ExceptionTree(
            worker=fit(tree.worker, size), error_id=tree.error_id, retryable=tree.retryable, truncated=True
        )
        node = least.exceptions.add(type=fit(first.type, size), module=fit(first.module, size), bases=bases)
        node.suppress_context = first.suppress_context
        room = limit - least.ByteSize() - 12  # the message's tag and length, and longer lengths around it
        node.message = fit(first.message, room) if room > 0 else ""
        if least.ByteSize() <= limit:
            return least
        bases = []
    return error_pb2.ExceptionTree(truncated=limit >= 2)
