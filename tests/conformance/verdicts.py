"""One result of what every rank tells and of how it ended."""

from __future__ import annotations

import signal
from dataclasses import dataclass

PASSED = "passed"
SKIPPED = "skipped"
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Told:
    """What a rank wrote down when its test method had ended."""

    outcome: str
    """PASSED, SKIPPED or FAILED."""
    note: str
    """The reason of a skip, or the last line of what was raised."""
    when: float
    """Seconds on the machine's monotonic clock; what failed first is likely to be the cause."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one rank ended."""

    told: Told | None
    """None where it died or was ended before its test method ended."""
    code: int | None
    """The exit code, negative for a signal; None for a rank that the harness had to end."""


def _complaint(ended: Ended) -> str | None:
    """What is wrong with a rank that was not ended by the harness, or None."""
    if ended.told is not None and ended.told.outcome == FAILED:
        return ended.told.note
    if ended.code is None:
        return None
    after = "" if ended.told is None else f" after the test had {ended.told.outcome}"
    if ended.code < 0:
        return f"died of {signal.Signals(-ended.code).name}{after}"
    if ended.code or ended.told is None:
        return f"exited with {ended.code}{after}"
    return None


def judge(ranks: list[Ended], *, timed_out: bool, left_behind: bool) -> tuple[str, str]:
    """Returns the result of a test and the note to it.

    Every rank counts. Torch's own runner looks at rank 0's exit code alone.
    """
    complaints = [(rank, found) for rank, ended in enumerate(ranks) if (found := _complaint(ended)) is not None]
    running = [rank for rank, ended in enumerate(ranks) if ended.code is None]
    if complaints:
        # Those that tell when they failed come first, in that order.
        def when(complaint: tuple[int, str]) -> float:
            told = ranks[complaint[0]].told
            return float("inf") if told is None else told.when

        rank, note = min(complaints, key=when)
        return FAILED, f"rank {rank}: {note}"
    if timed_out:
        phase = {rank: "after the test" if ranks[rank].told else "in the test" for rank in running}
        return "timeout", "still running: " + ", ".join(f"rank {rank} {phase[rank]}" for rank in running)
    if left_behind:
        return FAILED, "left processes behind"
    skips = [ended.told.note for ended in ranks if ended.told is not None and ended.told.outcome == SKIPPED]
    if not skips:
        return "ok", ""
    if len(skips) == len(ranks):
        return SKIPPED, skips[0]
    return FAILED, f"{len(skips)} of {len(ranks)} ranks skipped it"
