"""Calls of a worker to itself: pickled and copied as if they travelled, but without a network."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from tensorcall.client.letting_go import made_apart
from tensorcall.rpc import serving as served
from tensorcall.rpc.world import Member
from tensorcall.server import context as contexts
from tensorcall.server import owned, owner_rref
from tensorcall.server.context import CallContext, Peer
from tensorcall.wire import calls, chunks, exceptions
from tensorcall.wire.calls import Encoded, Payload, Request, Target
from tensorcall.wire.limits import CHUNK_BYTES

if TYPE_CHECKING:
    from tensorcall.rpc.serving import Serving

_SELF = Peer("inproc:", trusted=True)

_OURS = {__file__, owned.__file__, owner_rref.__file__, *served.OUR_FILES}

Succeed = Callable[[Any], object]
Fail = Callable[[BaseException], object]


class LocalCalls:
    """Runs this worker's own calls on its server's threads."""

    def __init__(self, me: Member, serving: Serving, open_rref: Callable[[Any], Any]) -> None:
        self._me = me
        self._serving = serving
        self._open_rref = open_rref

    def prepare(self, target: Target, args: tuple[Any, ...], *, copy: bool = True) -> Callable[[Succeed, Fail], None]:
        """Pickles a call and returns what starts it.

        Args:
            target: what to run.
            args: its arguments.
            copy: whether the result is copied, as if it had travelled.
        """
        encoded = calls.encode_request(target, args, {}, pickled=True, chunk_above=CHUNK_BYTES)

        def start(succeed: Succeed, fail: Fail) -> None:
            core = self._serving.core
            assert core is not None
            core.pool.submit_always(self._run, target, encoded, succeed, fail, copy)

        return start

    def _run(self, target: Target, encoded: Encoded, succeed: Succeed, fail: Fail, copy: bool) -> None:
        def give(result: Any) -> None:
            try:
                given = self._copied(result) if copy else result
            except BaseException as error:
                refuse(error)
            else:
                succeed(given)

        def refuse(error: BaseException) -> None:
            # As it would arrive from elsewhere. A value that stays here keeps the exception itself.
            fail(self.as_remote(error) if copy else error)

        try:
            args, handles = self._arguments(encoded)
            token = contexts.enter(CallContext(target.function, _SELF, None))
            try:
                if target.function == served.RUN_LATER:
                    func, args, kwargs, _ = args
                    self._serving.begin_later(func, args, kwargs, give, refuse)
                    return
                run = self._serving.run if target.function == served.RUN else self._serving.ping
                result = run(*args)
            finally:
                contexts.leave(token)
            del handles
        except BaseException as error:
            refuse(error)
        else:
            give(result)

    def _arguments(self, encoded: Encoded) -> tuple[tuple[Any, ...], list[Any]]:
        request: Request = calls.decode_request(encoded.bytes)
        _gather(request.blobs, encoded)
        opened: list[Any] = []

        def open_rref(rref_id: Any) -> Any:
            handle = self._open_rref(rref_id)
            opened.append(handle)
            return handle

        args, _ = request.arguments(open_rref)
        for handle in opened:
            handle.wait_confirmed()
        return args, encoded.handles

    def _copied(self, result: Any) -> Any:
        encoded = calls.encode_payload(result, pickled=True, chunk_above=CHUNK_BYTES)
        payload: Payload = calls.decode_payload(encoded.bytes)
        _gather(payload.blobs, encoded)
        return payload.object(allow_pickle=True, open_rref=self._open_rref)

    def as_remote(self, error: BaseException) -> BaseException:
        """Returns what a function raised as it would arrive from elsewhere."""
        tree = exceptions.to_tree(error, worker=self._me.name, skip=_is_ours)
        return made_apart(lambda: exceptions.from_tree(tree))


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename in _OURS


def _gather(blobs: Any, encoded: Encoded) -> None:
    if encoded.chunked:
        gathering = chunks.Gathering(blobs)
        for index, data in encoded.chunked:
            gathering.add(index, 0, data)
