"""`m3p serve`: one page and a JSON API over an index, by Python's own HTTP server, a thread for each connection.

    GET  /                                      the page (page.html)
    GET  /api/index                             what is searched, and by which weights
    GET  /api/search?query=WORDS&offset=0&top=24
    POST /api/search?offset=0&top=24            the body is a JPEG, PNG or WebP file
    GET  /pictures/NUMBER?size=small|large      a JPEG made here of a picture of the index

Errors are {"error": ...}: 400 for what cannot be understood, 404, 411, 413 and 415 for bodies, 421 for another host's name, 429
for too many requests, 503 where too many wait. No path of a client is ever one of a file.
"""

import base64
import hashlib
import io
import ipaddress
import json
import re
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as StillWaiting
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from PIL import Image

from m3p.api import Model
from m3p.data.records import says_something
from m3p.errors import BadSample, UserError
from m3p.search.index import SearchIndex
from m3p.search.parts import Entry
from m3p.search.serve.deadline import TimedBytes
from m3p.search.serve.limits import (
    MAX_BODY,
    MAX_CONNECTIONS,
    MAX_DEPTH,
    MAX_QUERY,
    MAX_TOP,
    PIXELS_OF_A_QUERY,
    TIMEOUT,
    Rate,
)
from m3p.search.serve.queries import BusyError, Queries
from m3p.search.serve.thumbnails import SIDES, Thumbnails
from m3p.terminal import one_line, warn

FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
"""What a connection beyond `MAX_CONNECTIONS` is answered."""
PATIENCE = 60.0
"""Seconds that a query may wait for its answer."""
PICTURES = {"image/jpeg", "image/png", "image/webp"}
"""Content types that a query's picture may have. None of them is sent by another site's form."""
PICTURE_COST = 0.05
"""What a thumbnail takes of the rate: a page shows some twenty for each query."""


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Page:
    """The page with the policy that allows its own style and script, by their hashes, and nothing else."""

    content: bytes
    policy: str

    @classmethod
    def read(cls) -> "Page":
        """Read page.html of the package."""
        text = files("m3p.search.serve").joinpath("page.html").read_text(encoding="utf-8")
        hashes = {
            tag: " ".join(map(_source, re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S))) for tag in ("style", "script")
        }
        policy = (
            f"default-src 'none'; style-src {hashes['style']}; script-src {hashes['script']}; img-src 'self' blob:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return cls(text.encode(), policy)


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class Server(ThreadingHTTPServer):
    """Serves one index. Call `serve_forever`, and `server_close` at the end.

    Args:
        address: host and port; port 0 takes a free one.
        index: what is searched.
        model: embeds queries.
        per_second: queries a second of one address.
        names: further names by which clients may call this host.
    """

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(
        self, address: tuple[str, int], index: SearchIndex, model: Model, per_second: float, names: tuple[str, ...] = ()
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.index, self.rate = index, Rate(per_second)
        self.page = Page.read()
        self.names = {address[0].lower(), *(name.lower() for name in names)}
        if is_loopback(address[0]):
            self.names |= {"localhost", "127.0.0.1", "::1"}
        visual = model.run.recipe.visual
        self.sees_pixels = visual is None or visual.needs_pictures
        self._places = BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, Handler)
        self.queries = Queries(model, index, MAX_DEPTH)
        self.thumbnails = Thumbnails(index.stored)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or close it where too many are open."""
        if not self._places.acquire(blocking=False):
            request.settimeout(1)
            with suppress(OSError):  # the client may have gone already
                request.sendall(FULL)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a client that has gone go; what else is raised is a defect, and shown."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """Close the socket, and end the thread that answers."""
        super().server_close()
        self.queries.close()

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Handler(BaseHTTPRequestHandler):
    """One connection: reads requests and answers them."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "m3p", ""
    timeout = TIMEOUT
    server: Server

    def setup(self) -> None:
        """Read the connection by a clock."""
        super().setup()
        self._bytes = TimedBytes(self.connection, self.timeout)
        self.rfile = io.BufferedReader(self._bytes)

    def handle_one_request(self) -> None:
        """Read and answer a request, whose head must come in time."""
        self._bytes.restart()
        super().handle_one_request()

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a POST: a picture as the query."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep no log of requests: queries are their askers' own."""

    def _answer(self, method: Callable[[SplitResult], None]) -> None:
        try:
            self._check_host()
            method(self._url(self.path))
        except RefusedError as refused:
            self.close_connection = True  # a body that was not read must not be taken for the next request
            self._send_json(refused.status, {"error": one_line(refused)})
        except (ConnectionError, TimeoutError):
            raise
        except UserError as error:  # what a client sent is refused above; this is of the files of the index
            warn(str(error))
            self._send_json(
                HTTPStatus.SERVICE_UNAVAILABLE, {"error": "the index is not as it was; start the server again"}
            )
        except Exception as error:
            self.close_connection = True
            warn(f"a request failed: {type(error).__name__}: {error}")
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "the server failed; its terminal says why"})

    def _check_host(self) -> None:
        """Refuse names that are not this server's: another site's name may be made to lead here (DNS rebinding)."""
        name = self._url(f"//{self.headers.get('Host', '')}").hostname or ""
        if name not in self.server.names:
            raise RefusedError(
                HTTPStatus.MISDIRECTED_REQUEST, f"{name!r} is no name of this server; see m3p serve --name"
            )

    def _url(self, text: str) -> SplitResult:
        try:
            return urlsplit(text)
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"the address cannot be read: {error}") from error

    def _get(self, url: SplitResult) -> None:
        if url.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page.content)
        elif url.path == "/api/index":
            self._send_json(HTTPStatus.OK, self._about())
        elif url.path == "/api/search":
            asked = self._asked(url.query)
            self._search(self._text(asked), asked)
        elif found := re.fullmatch(r"/pictures/([0-9]{1,15})", url.path):
            self._picture(int(found[1]), self._asked(url.query).get("size", "small"))
        else:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self, url: SplitResult) -> None:
        if url.path != "/api/search":
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")
        if not self.server.sees_pixels:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST, "this network was trained on stored features and cannot see pixels"
            )
        asked = self._asked(url.query)
        self._take(1)
        picture = self._body()
        self._take(max(0, pixels_of(picture) / PIXELS_OF_A_QUERY - 1))
        self._search(picture, asked)

    def _about(self) -> dict[str, Any]:
        """Return what /api/index says."""
        index = self.server.index
        record = index.settings.record
        return {
            "pictures": len(index), "run": record.run, "checkpoint": record.checkpoint, "weights": record.weights,
            "query_by_picture": self.server.sees_pixels, "max_query": MAX_QUERY, "max_top": MAX_TOP,
            "max_depth": min(MAX_DEPTH, len(index)), "max_picture_bytes": MAX_BODY,
        }  # fmt: skip

    def _take(self, cost: float) -> None:
        if not self.server.rate.allows(self.client_address[0], cost):
            raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "too many requests; wait a second")

    def _asked(self, query: str) -> dict[str, str]:
        """Return the parameters of a URL, each once."""
        try:
            found = parse_qs(
                query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=8
            )
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"the parameters cannot be read: {error}") from error
        return {name: values[-1] for name, values in found.items()}

    def _text(self, asked: dict[str, str]) -> str:
        text = asked.get("query", "").strip()
        if not text or len(text) > MAX_QUERY:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST, f"query: {len(text):,} characters; the rule is 1 to {MAX_QUERY:,}"
            )
        if not says_something(text):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "query: it shows nothing; write words to search for")
        self._take(1)
        return text

    def _number(self, asked: dict[str, str], name: str, default: int, minimum: int, maximum: int) -> int:
        text = asked.get(name, str(default))
        if not re.fullmatch(r"[0-9]{1,6}", text) or not minimum <= int(text) <= maximum:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{name} = {text[:20]!r}: the rule is {minimum} to {maximum:,}")
        return int(text)

    def _body(self) -> bytes:
        """Return the picture that is sent; its length is known before a byte of it is read."""
        kind, length = self.headers.get_content_type(), self.headers.get("Content-Length", "")
        if kind not in PICTURES:
            raise RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type is {kind}; the rule is {', '.join(sorted(PICTURES))}"
            )
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"[0-9]{1,12}", length):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "give Content-Length")
        if not 0 < int(length) <= MAX_BODY:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{int(length):,} bytes; the rule is 1 to {MAX_BODY:,}"
            )
        self._bytes.restart()
        end, found = time.monotonic() + TIMEOUT, bytearray()
        while len(found) < int(length):
            piece = self.rfile.read1(min(1 << 16, int(length) - len(found)))
            if not piece or time.monotonic() > end:
                raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "the body did not come to its end in time")
            found += piece
        return bytes(found)

    def _search(self, content: str | bytes, asked: dict[str, str]) -> None:
        """Answer a query whose rate has been counted."""
        top = self._number(asked, "top", 24, 1, MAX_TOP)
        offset = self._number(asked, "offset", 0, 0, MAX_DEPTH - 1)
        start = time.monotonic()
        try:
            # Always as deep, so that pages of one query fit together whatever their offset.
            found = self.server.queries.ask(content).result(PATIENCE)
        except (BusyError, StillWaiting):
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "too many queries wait; try again in a moment") from None
        except UserError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from error
        shown = [
            _shown(number, score, self.server.index.entry(number)) for number, score in found[offset : offset + top]
        ]
        seconds = round(time.monotonic() - start, 4)
        self._send_json(HTTPStatus.OK, {"offset": offset, "found": len(found), "seconds": seconds, "hits": shown})

    def _picture(self, number: int, size: str) -> None:
        """Send a thumbnail."""
        if size not in SIDES:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"size: the rule is {' or '.join(SIDES)}")
        self._take(PICTURE_COST)
        try:
            content = self.server.thumbnails.get(number, SIDES[size])
        except (KeyError, BadSample):
            content = b""
        if not content:
            raise RefusedError(HTTPStatus.NOT_FOUND, "no picture that can be shown has this number")
        self._send(HTTPStatus.OK, "image/jpeg", content, keep=True)

    def _send_json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes, keep: bool = False) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind, "Content-Length": str(len(content)), "Content-Security-Policy": self.server.page.policy,
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "private, max-age=3600" if keep else "no-store",
        }  # fmt: skip
        if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
            headers["Retry-After"] = "1"
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def pixels_of(content: bytes) -> int:
    """Return how many pixels a picture's file says that it has; 0 where it is none, which decoding will say."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.width * picture.height
    except Exception:  # on broken bytes Pillow raises nearly anything
        return 0


def _shown(number: int, score: float, entry: Entry) -> dict[str, Any]:
    """Return a picture as the API gives it."""
    known = {"id": entry.id, "caption": entry.caption, "language": entry.language}
    return {"number": number, "score": round(score, 6), **known}
