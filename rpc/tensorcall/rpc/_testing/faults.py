"""Messages that get lost or come late, by torch's names for them.

torch tests what it does in the face of failures by an agent that loses or delays the messages it is told to. Here the
same names stand for what is sent in their place:

    PYTHON_CALL, SCRIPT_CALL                 a call; SCRIPT where TorchScript or an operator is called
    PYTHON_REMOTE_CALL, SCRIPT_REMOTE_CALL   a call whose result stays on the other worker
    PYTHON_RREF_FETCH_CALL, SCRIPT_RREF_FETCH_CALL   to_here
    RREF_FORK_REQUEST, RREF_USER_DELETE      a reference is taken, or let go of; these are repeated until they arrive

What torch needs further messages for, such as RREF_CHILD_ACCEPT, has no counterpart: to name it has no effect.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any

from tensorcall.client.deadlines import deadlines
from tensorcall.wire.errors import Unreachable

_log = logging.getLogger(__name__)

# Methods of RRefService, by torch's names.
_RREF_METHODS = {"Fork": "RREF_FORK_REQUEST", "Release": "RREF_USER_DELETE"}


class Faults:
    """Loses and delays what a worker sends.

    Args:
        messages_to_fail: names of messages that get lost.
        messages_to_delay: names of messages that come late, and by how many seconds.
        num_fail_sends: how many times in a row a message that is repeated gets lost.
    """

    def __init__(
        self, messages_to_fail: Collection[str], messages_to_delay: Mapping[str, float], num_fail_sends: int
    ) -> None:
        self._lost = frozenset(messages_to_fail)
        self._late = dict(messages_to_delay)
        self._times = num_fail_sends
        self._attempts: Counter[object] = Counter()
        self._lock = threading.Lock()

    def send(self, message: str, send: Callable[[], object], fail: Callable[[BaseException], object]) -> None:
        """Sends a message that is sent once, or not, or later.

        Args:
            message: its name.
            send: sends it.
            fail: told instead that it is lost.
        """
        if message in self._lost and self._times > 0:
            fail(Unreachable(f"Send attempt 0 failed intentionally for {message}"))
            return
        self._after(message, send)

    def asking(self, ask: Callable[[str, Any, float], Future[Any]]) -> Callable[[str, Any, float], Future[Any]]:
        """Makes of what asks an owner about references one that loses and delays questions."""

        def ask_or_not(method: str, request: Any, timeout: float) -> Future[Any]:
            message = _RREF_METHODS.get(method, method)
            if message in self._lost and self._once_more(message, request):
                raise Unreachable(f"lost on purpose: {message}")
            if message not in self._late:
                return ask(method, request, timeout)
            answer: Future[Any] = Future()
            self._after(message, lambda: ask(method, request, timeout).add_done_callback(lambda f: _pass_on(f, answer)))
            return answer

        return ask_or_not

    def _once_more(self, message: str, request: Any) -> bool:
        key = message, request.SerializeToString(deterministic=True)
        with self._lock:
            self._attempts[key] += 1
            return self._attempts[key] <= self._times

    def _after(self, message: str, send: Callable[[], object]) -> None:
        seconds = self._late.get(message, 0)
        if not seconds:
            send()
            return
        # On a thread of its own: to send may take a while.
        deadlines.after(seconds, lambda: threading.Thread(target=send, daemon=True).start())


def _pass_on(ended: Future[Any], to: Future[Any]) -> None:
    error = ended.exception()
    if error is not None:
        to.set_exception(error)
    else:
        to.set_result(ended.result())
