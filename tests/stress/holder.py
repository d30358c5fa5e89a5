"""A client to be killed: makes references, tells how many, and waits. `python holder.py ADDRESS COUNT`."""

from __future__ import annotations

import sys
import threading

from tensorcall.client import connect


def main() -> None:
    remote = connect(sys.argv[1])
    held = [remote.remote("served.Cell", i, name=sys.argv[3]) for i in range(int(sys.argv[2]))]
    held += remote.call("served.refer", list(range(10)))
    for rref in held:
        rref.wait_confirmed(30)
    print(len(held), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
