from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from support.messages import damaged, messages, rewritten
from support.objects import RREFS
from support.reference import rref_of

from tensorcall.v1 import rref_pb2
from tensorcall.wire import rrefs
from tensorcall.wire.errors import BadPayload, Unencodable
from tensorcall.wire.rrefs import RRefId

quick = settings(deadline=None, max_examples=100)


@quick
@given(RREFS)
def test_written_as_by_the_generated_class(rref: RRefId) -> None:
    message = rref_pb2.RRefId(owner=rref.owner, incarnation=rref.incarnation, sequence=rref.sequence)
    assert rrefs.encode(rref) == message.SerializeToString()
    assert rrefs.decode(b"x" + rrefs.encode(rref) + b"y", 1, 1 + len(rrefs.encode(rref))) == rref


@quick
@given(st.data())
def test_read_however_it_is_written(data: st.DataObject) -> None:
    message = data.draw(messages(rref_pb2.RRefId))
    written = data.draw(rewritten(message.DESCRIPTOR, message.SerializeToString()))
    assert rrefs.decode(written, 0, len(written)) == rref_of(message)


@quick
@given(RREFS, st.data())
def test_garbage_is_refused(rref: RRefId, data: st.DataObject) -> None:
    garbage = data.draw(damaged(rrefs.encode(rref)))
    with contextlib.suppress(BadPayload):
        rrefs.decode(garbage, 0, len(garbage))


@pytest.mark.parametrize("rref", [RRefId("a", -1, 1), RRefId("a", 2**64, 1), RRefId("a", 1, -1), RRefId("a", 1, 2**64)])
def test_numbers_that_no_value_has_are_refused(rref: RRefId) -> None:
    with pytest.raises(Unencodable, match="64 bits"):
        rrefs.encode(rref)


def test_an_owner_that_is_no_text_is_refused() -> None:
    with pytest.raises(Unencodable, match="surrogate"):
        rrefs.encode(RRefId("\udfff", 1, 1))
