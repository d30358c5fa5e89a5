"""The examples on tensorcall.rpc, run as people run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *options: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *options], capture_output=True, text=True, timeout=110, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_trainers_improve_the_parameters_of_a_server_together() -> None:
    lines = run("parameter_server/parameter_server.py", "--trainers", "2").splitlines()
    losses = [re.fullmatch(r"trainer(\d): loss (\S+) -> (\S+)", line) for line in lines]
    assert [found and found[1] for found in losses] == ["1", "2"], lines
    assert all(found and float(found[2]) > 1 and float(found[3]) < 0.05 for found in losses), lines


def test_actors_and_a_learner_find_the_prize() -> None:
    (line,) = run("actor_loop/actor_loop.py", "--episodes", "60").splitlines()
    found = re.fullmatch(r"reward of an episode: (\S+) at first, (\S+) at last", line)
    # Straight to the prize is 1 less two steps of 0.1.
    assert found, line
    first, last = float(found[1]), float(found[2])
    assert first < 0.5, line
    assert last > 0.7, line
