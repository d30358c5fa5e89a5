"""A shrunk tree always fits, and what tells most goes last."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorcall.v1 import error_pb2, value_pb2
from tensorcall.wire import exceptions
from tensorcall.wire.errors import RemoteError

text = st.one_of(st.text(max_size=20), st.integers(0, 3000).map("ä".__mul__))
index = st.integers(0, 12)
values = st.one_of(
    text.map(lambda x: value_pb2.Value(string=x)),
    st.integers(-5, 5).map(lambda x: value_pb2.Value(int=x)),
    st.binary(max_size=3000).map(lambda x: value_pb2.Value(bytes=x)),
)
frames = st.builds(error_pb2.Frame, file=text, line=st.integers(0, 2**32 - 1), function=text, source=text)
nodes = st.builds(
    error_pb2.RemoteException,
    type=text,
    module=text,
    message=text,
    args=st.lists(values, max_size=3),
    inexact_args=st.lists(index, max_size=2),
    attributes=st.dictionaries(text, values, max_size=3),
    frames=st.lists(frames, max_size=8),
    notes=st.lists(text, max_size=3),
    cause=st.none() | index,
    context=st.none() | index,
    suppress_context=st.booleans(),
    members=st.lists(index, max_size=4),
    bases=st.lists(st.sampled_from(["builtins.KeyError", "builtins.ValueError", "torch.x"]) | text, max_size=3),
)
trees = st.builds(
    error_pb2.ExceptionTree,
    exceptions=st.lists(nodes, max_size=8),
    worker=text,
    error_id=text,
    retryable=st.booleans(),
)


@settings(deadline=None, max_examples=150)
@given(trees, st.integers(0, 6000))
def test_always_fits(tree: error_pb2.ExceptionTree, limit: int) -> None:
    before = tree.SerializeToString(deterministic=True)
    small = exceptions.shrink(tree, limit)
    assert tree.SerializeToString(deterministic=True) == before
    assert small.ByteSize() <= limit
    assert small == tree if tree.ByteSize() <= limit else small.truncated or limit < 2
    exceptions.from_tree(small)


@settings(deadline=None, max_examples=150)
@given(trees)
def test_any_tree_is_read_and_sent_on(tree: error_pb2.ExceptionTree) -> None:
    error = exceptions.from_tree(tree)
    assert isinstance(error, RemoteError)
    assert isinstance(error.remote_traceback, str)
    assert str(error) == (tree.exceptions[0].message if tree.exceptions else "")
    exceptions.to_tree(error)


def example(**more: Any) -> error_pb2.ExceptionTree:
    """A cause, its cause and a context, each with 40 frames."""
    tree = error_pb2.ExceptionTree(worker="w", error_id="id", retryable=True)
    for name in ("ValueError", "KeyError", "TypeError", "IndexError"):
        node = tree.exceptions.add(type=name, module="builtins", message=f"message of {name}", **more)
        node.args.add(string=f"message of {name}")
        node.notes.append("a note")
        for line in range(40):
            node.frames.add(file="module.py", line=line, function="function", source="some(source, code)")
    tree.exceptions[0].cause, tree.exceptions[1].cause, tree.exceptions[0].context = 1, 2, 3
    return tree


def links(tree: error_pb2.ExceptionTree) -> list[str]:
    return [node.type for node in tree.exceptions]


def test_sources_go_first() -> None:
    tree = example()
    small = exceptions.shrink(tree, tree.ByteSize() - 1)
    assert [bool(node.frames[0].source) for node in small.exceptions] == [True, False, False, False]
    assert [len(node.frames) for node in small.exceptions] == [40] * 4


def test_then_attributes_largest_first_and_frames_in_the_middle() -> None:
    tree = example(attributes={"small": value_pb2.Value(int=1), "large": value_pb2.Value(bytes=bytes(900))})
    small = exceptions.shrink(tree, 5500)
    assert [set(node.attributes) for node in small.exceptions] == [{"small", "large"}, *[{"small"}] * 3]
    small = exceptions.shrink(tree, 3500)
    assert [[frame.line for frame in node.frames] for node in small.exceptions] == [[*range(10), 0, *range(30, 40)]] * 4
    assert small.exceptions[0].frames[10].function == "[20 frames left out]"


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (1200, ["ValueError", "KeyError", "TypeError", "IndexError"]),
        (900, ["ValueError", "KeyError", "TypeError"]),
        (600, ["ValueError", "KeyError", "TypeError"]),
        (450, ["ValueError", "KeyError"]),
        (200, ["ValueError"]),
    ],
)
def test_contexts_go_before_causes(limit: int, kept: list[str]) -> None:
    small = exceptions.shrink(example(), limit)
    assert links(small) == kept
    assert small.exceptions[0].cause == (1 if len(kept) > 1 else 0)
    assert small.exceptions[0].HasField("context") == (len(kept) == 4)


def test_a_huge_message_costs_nothing_else() -> None:
    tree = example()
    tree.exceptions[0].message = tree.exceptions[0].args[0].string = "x" * 10_000_000
    small = exceptions.shrink(tree, 4000)
    assert links(small) == links(tree)
    first = small.exceptions[0]
    assert first.message.endswith(" more characters)")
    assert first.args[0].string == first.message
    assert list(first.inexact_args) == [0]


def test_at_the_end_stay_type_message_and_where_to_get_the_rest() -> None:
    small = exceptions.shrink(example(), 100)
    assert (small.error_id, small.worker, small.retryable, small.truncated) == ("id", "w", True, True)
    assert str(exceptions.from_tree(small)).startswith("message")
    assert isinstance(exceptions.from_tree(small), ValueError)
