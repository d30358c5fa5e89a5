"""Runs the conformance tests from the command line: python -m tests.conformance --help."""

from __future__ import annotations

import sys

from .commandline import main

if __name__ == "__main__":
    sys.exit(main())
