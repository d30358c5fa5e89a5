"""Strategies that make whatever a Value can be."""

from __future__ import annotations

import struct
from typing import Any

import hypothesis.strategies as st

from support.messages import integers
from tensorcall.wire.rrefs import RRefId

# Every bit of a double, those of NaN too.
DOUBLES = st.floats() | st.binary(min_size=8, max_size=8).map(lambda data: float(struct.unpack("<d", data)[0]))
TEXT = st.text(max_size=8) | st.text("aé", min_size=60, max_size=130)
RREFS = st.builds(RRefId, TEXT, integers(0, 2**64 - 1), integers(0, 2**64 - 1), TEXT)

HASHABLE_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    integers(-(2**64), 2**64),
    st.integers(),
    DOUBLES,
    st.builds(complex, DOUBLES, DOUBLES),
    TEXT,
    st.binary(max_size=140),
    RREFS,
)
HASHABLE = st.recursive(
    HASHABLE_SCALARS,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
SCALARS = HASHABLE_SCALARS | st.binary(max_size=20).map(bytearray)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Everything that holds other values."""
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(TEXT, inner, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=3),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
    )


OBJECTS = st.recursive(SCALARS, containers, max_leaves=12)
