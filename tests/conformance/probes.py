"""Tests that fail in every way in which a test can, for the harness' own tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import unittest


class Probes(unittest.TestCase):
    """As torch's tests are: each rank runs the method in a process of its own."""

    world_size = 2
    rank = -1
    file_name = ""

    def test_passes(self) -> None:
        assert self.rank in (0, 1)
        assert os.path.getsize(self.file_name) == 0

    def test_last_rank_fails(self) -> None:
        if self.rank == 1:
            raise ValueError("only here")

    def test_first_failure_is_told(self) -> None:
        # Rank 0 fails of what rank 1 did.
        time.sleep(1 - self.rank)
        raise ValueError(f"rank {self.rank}")

    def test_failure_while_other_hangs(self) -> None:
        if self.rank == 1:
            raise ValueError("the other waits for me")
        time.sleep(1000)

    def test_is_skipped(self) -> None:
        raise unittest.SkipTest("for a reason")

    def test_is_skipped_by_exit_code(self) -> None:
        sys.exit(75)

    def test_is_skipped_by_one_rank(self) -> None:
        if self.rank == 1:
            raise unittest.SkipTest("for a reason")

    def test_exits(self) -> None:
        sys.exit(self.rank)

    def test_exits_silently(self) -> None:
        os._exit(0)

    def test_dies(self) -> None:
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGSEGV)

    def test_dies_at_the_very_end(self) -> None:
        if self.rank == 1:
            # Not at exit: when the interpreter takes itself apart, as an RRef deleted too late would.
            class Late:
                def __del__(self, exit: object = os._exit) -> None:
                    exit(7)  # type: ignore[operator]

            sys.modules["conformance.late"] = Late()  # type: ignore[assignment]

    def test_hangs(self) -> None:
        if self.rank == 1:
            # SIGTERM would not do.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.hang_here()

    def hang_here(self) -> None:
        time.sleep(1000)

    def test_hangs_after_the_test(self) -> None:
        import atexit

        if self.rank == 0:
            atexit.register(time.sleep, 1000)

    def test_leaves_a_process(self) -> None:
        subprocess.Popen(["sleep", "1000"])

    def test_leaves_a_process_in_a_session_of_its_own(self) -> None:
        subprocess.Popen(["sleep", "1000"], start_new_session=True)

    def test_writes(self) -> None:
        print(f"out of rank {self.rank}")
        os.write(2, b"straight to stderr\n")
        raise ValueError("to be shown")
