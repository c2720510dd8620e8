"""A server over the tiny run's index, in a thread of the test's own process."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from m3p.api import Model
from m3p.search.index import SearchIndex
from m3p.search.serve.server import Server


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: Server, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
) -> Reply:
    """Send one request as it stands: nothing is escaped or normalised."""
    host, port = str(server.server_address[0]), int(server.server_address[1])
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        named = {name.lower(): value for name, value in (headers or {}).items()}
        connection.request(
            method, path, body, {"host": f"{host}:{port}", **named}
        )  # else the client reads the path itself
        reply = connection.getresponse()
        return Reply(reply.status, reply.headers, reply.read())
    finally:
        connection.close()


@contextmanager
def serving(index: SearchIndex, model: Model, per_second: float = 1000.0) -> Iterator[Server]:
    """Serve in a thread until the block ends."""
    server = Server(("127.0.0.1", 0), index, model, per_second)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def opened(shelf: Path) -> tuple[SearchIndex, Model]:
    """The index of the tiny run's shards, and its network."""
    index = SearchIndex(shelf)
    return index, index.open_model()


@pytest.fixture(scope="session")
def server(opened: tuple[SearchIndex, Model]) -> Iterator[Server]:
    """A server that many tests ask."""
    with serving(*opened) as running:
        yield running
