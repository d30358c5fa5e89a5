"""A worker of an elastic world for tests, without rpc: `elastic_worker.py NAME URL LEASE`; told what to do on stdin."""

from __future__ import annotations

import json
import logging
import secrets
import sys
from types import ModuleType

import tensorcall

# The package itself imports torch, which takes seconds, and which this does without.
package = ModuleType("tensorcall.rpc")
package.__path__ = [f"{folder}/rpc" for folder in tensorcall.__path__]
sys.modules[package.__name__] = package

from tensorcall.rpc import elastic  # noqa: E402


def main() -> None:
    name, url, lease_seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)

    def tell(**what: object) -> None:
        print(json.dumps(what), flush=True)

    incarnation = secrets.randbits(63) + 1
    address = f"127.0.0.1:{name[-1]}"
    try:
        membership = elastic.join(name, url, address, incarnation, timeout=20, lease_seconds=lease_seconds)
    except Exception as error:
        tell(error=type(error).__name__, message=str(error))
        return
    tell(id=membership.worker.id, hosting=membership.hosting)
    for line in sys.stdin:
        command = line.strip()
        if command == "members":
            tell(members={worker.name: worker.id for worker in membership.members()}, hosting=membership.hosting)
        elif command == "leave":
            membership.leave()
            tell(left=True)
            return


if __name__ == "__main__":
    main()
