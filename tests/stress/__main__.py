"""Runs the simulation with many seeds: python -m tests.stress --seeds 20."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from stress.simulation import simulate
from stress.world import Faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many runs")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--operations", type=int, default=10_000, help="how many each does")
    arguments = parser.parse_args()
    failed = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        began = time.monotonic()
        # One in three without deaths and losses: then not one reference may arrive without its value.
        faults = Faults(lost=0.0, repeated=0.3, late=0.2, latest=3.0, deaths=False) if seed % 3 == 0 else Faults()
        try:
            run = simulate(seed, arguments.operations, faults=faults)
        except AssertionError as error:
            failed += 1
            print(f"seed {seed}: FAILED\n{error}", flush=True)
        else:
            told = ", ".join(f"{count:,} {what}" for what, count in sorted(run.world.counts.items()))
            print(f"seed {seed}: ok in {time.monotonic() - began:.1f} s: {told}", flush=True)
    print(f"{failed} of {arguments.seeds} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
