"""The command line: `tensorcall serve | ls | describe | call | health`."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

# Of which the command line consists; the extra `cli` installs them.
_NEEDED = ("click", "rich")


def main() -> int:
    """Runs the command line and returns its exit code."""
    missing = next((name for name in _NEEDED if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        sys.stderr.write(f"the command line needs {missing}: pip install 'tensorcall[cli]'\n")
        return 2
    from tensorcall.cli.app import run

    return run()
