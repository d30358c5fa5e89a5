"""What a function raised, kept apart from our own errors."""

from __future__ import annotations


class UdfRaised(Exception):
    """Carries what a function raised, whatever it was, past everything that handles our own errors."""

    def __init__(self, exception: BaseException) -> None:
        super().__init__()
        self.exception = exception
