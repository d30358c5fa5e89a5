"""`python -m tensorcall.cli` is `tensorcall`."""

import sys

from tensorcall.cli import main

sys.exit(main())
