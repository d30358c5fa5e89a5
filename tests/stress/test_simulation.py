"""A bounded share of the simulation; `python -m tests.stress --seeds 20` does more."""

from __future__ import annotations

import os
import random

import pytest

from stress.simulation import simulate
from stress.world import Faults

SEED = int(os.environ.get("TENSORCALL_STRESS_SEED") or random.SystemRandom().randrange(2**32))
OPERATIONS = 10_000


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(), id="all"),
        pytest.param(Faults(lost=0.0, repeated=0.4, late=0.3, latest=3.0, deaths=False), id="repeated and late"),
        pytest.param(Faults(lost=0.4, repeated=0.0, late=0.0), id="lost"),
        pytest.param(Faults(lost=0.0, repeated=0.0, late=0.0), id="deaths"),
    ],
)
def test_nothing_leaks_and_nothing_goes_early(faults: Faults) -> None:
    print(f"TENSORCALL_STRESS_SEED={SEED}")
    run = simulate(SEED, OPERATIONS, faults=faults)
    counts = run.world.counts
    print(dict(counts))
    # It did what it is there for.
    assert counts["operations"] == OPERATIONS
    assert counts["values gone"] > 500
    assert counts["fetched"] > 100
    assert bool(counts["deaths"]) == faults.deaths


def test_the_same_seed_does_the_same() -> None:
    first, second = (simulate(7, 1000).world.counts for _ in range(2))
    assert first == second
