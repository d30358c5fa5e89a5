from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from support.messages import damaged, messages, rewritten
from support.objects import RREFS, TEXT
from support.reference import exact, rref_message, rref_of

from tensorcall.v1 import rref_pb2
from tensorcall.wire import rrefs
from tensorcall.wire.errors import BadPayload, Unencodable
from tensorcall.wire.rrefs import RRefId

quick = settings(deadline=None, max_examples=100)


@quick
@given(RREFS)
def test_written_as_by_the_generated_class(rref: RRefId) -> None:
    assert rrefs.encode(rref) == rref_message(rref).SerializeToString()
    assert exact(rrefs.decode(b"x" + rrefs.encode(rref) + b"y", 1, 1 + len(rrefs.encode(rref)))) == exact(rref)


@quick
@given(st.data())
def test_read_however_it_is_written(data: st.DataObject) -> None:
    message = data.draw(messages(rref_pb2.RRefId))
    written = data.draw(rewritten(message.DESCRIPTOR, message.SerializeToString()))
    assert exact(rrefs.decode(written, 0, len(written))) == exact(rref_of(message))


@quick
@given(RREFS, TEXT)
def test_the_address_is_no_part_of_the_name(rref: RRefId, address: str) -> None:
    moved = rref._replace(address=address)
    assert moved == rref
    assert (moved != rref) is False
    assert hash(moved) == hash(rref)
    assert str(moved) == str(rref)
    assert len({rref, moved}) == 1
    for other in (
        rref._replace(owner=rref.owner + "x"),
        rref._replace(incarnation=rref.incarnation ^ 1),
        rref._replace(sequence=rref.sequence ^ 1),
    ):
        assert rref != other
        assert (rref == other) is False
    assert rref != tuple(rref)


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


@pytest.mark.parametrize("rref", [RRefId("\udfff", 1, 1), RRefId("a", 1, 1, "\udfff")])
def test_what_is_no_text_is_refused(rref: RRefId) -> None:
    with pytest.raises(Unencodable, match="surrogate"):
        rrefs.encode(rref)
