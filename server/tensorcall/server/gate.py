"""Who may come in: the secret that callers show in the metadata of every call."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

KEY = "authorization"
_SCHEME = "Bearer "


class Gate:
    """Knows the secret; lets everybody in where there is none."""

    def __init__(self, secret: str) -> None:
        self._expected = (_SCHEME + secret).encode() if secret else b""

    @property
    def guarded(self) -> bool:
        """Whether there is a secret: then whoever came in has shown it."""
        return bool(self._expected)

    def lets_in(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
        """Whether a call with this metadata may come in. Takes as long for a wrong secret as for the right one."""
        if not self._expected:
            return True
        shown = b""
        for key, value in metadata or ():
            if key == KEY:
                shown = value.encode("utf-8", "replace") if isinstance(value, str) else value
        return hmac.compare_digest(shown, self._expected)
