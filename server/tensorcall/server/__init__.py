"""Serves Python functions to callers in any language.

    from tensorcall.server import expose

    @expose
    def add(a: float, b: float) -> float:
        return a + b

Then `tensorcall serve mymodule`, or `Server([add])` in a program of one's own.
"""

from tensorcall.server.config import ServerConfig
from tensorcall.server.context import CallContext, Peer, current_call
from tensorcall.server.expose import expose
from tensorcall.server.server import Server, serve

__all__ = ["CallContext", "Peer", "Server", "ServerConfig", "current_call", "expose", "serve"]
