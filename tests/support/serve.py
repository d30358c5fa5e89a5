"""Runs a server for tests: `python serve.py '{"bind": …}' MODULE`; tells its port on stdout."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tensorcall.server import Server, ServerConfig, serve


def main() -> int:
    settings = {"bind": "127.0.0.1:0", **json.loads(sys.argv[1])}
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    server = Server(modules=[importlib.import_module(sys.argv[2])], config=ServerConfig(**settings))
    return serve(server, lambda started: print(started.address, flush=True))


if __name__ == "__main__":
    sys.exit(main())
