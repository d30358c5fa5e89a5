"""What there would be without tensorcall: bytes echoed by grpcio's own server, nothing decoded, nothing checked."""

from __future__ import annotations

import queue
from collections import deque
from concurrent import futures
from typing import Any

import grpc

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def serve(threads: int = 16) -> tuple[grpc.Server, int]:
    """Starts a server that echoes bytes, unary and on a stream; returns it and its port."""
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
        "Stream": grpc.stream_stream_rpc_method_handler(lambda requests, context: requests),
    }
    server = grpc.server(futures.ThreadPoolExecutor(threads), options=_OPTIONS)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bare.Echo", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


class Client:
    """Calls it as one would by hand."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self.unary = self._channel.unary_unary("/bare.Echo/Unary")
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._responses: Any = self._channel.stream_stream("/bare.Echo/Stream")(iter(self._requests.get, None))

    def ping_pong(self, message: bytes) -> bytes:
        """Sends a message on the open stream and waits for its echo."""
        self._requests.put(message)
        response: bytes = next(self._responses)
        return response

    def in_flight(self, message: bytes, count: int, at_once: int) -> None:
        """Makes so many unary calls, so many of them in flight."""
        calls: deque[Any] = deque()
        for _ in range(count):
            if len(calls) >= at_once:
                calls.popleft().result()
            calls.append(self.unary.future(message))
        for call in calls:
            call.result()

    def close(self) -> None:
        """Ends the stream and the channel."""
        self._requests.put(None)
        self._channel.close()
