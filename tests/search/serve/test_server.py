"""The API answers as the index does, and refuses what is hostile."""

import io
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from m3p.api import Floats, Model
from m3p.errors import UserError
from m3p.search.build import index_pictures
from m3p.search.index import SearchIndex
from m3p.search.serve import queries as queries_module
from m3p.search.serve import server as server_module
from m3p.search.serve.limits import MAX_BODY, MAX_CONNECTIONS, Rate
from m3p.search.serve.queries import BusyError, Queries
from m3p.search.serve.server import Server, is_loopback
from tests.search.conftest import EVIL, draw
from tests.search.serve.conftest import ask, serving

PNG = {"Content-Type": "image/png"}


def png(path: Path, number: int = 3) -> bytes:
    return draw(path / f"{number}.png", number).read_bytes()


@pytest.mark.parametrize("words", ["dog cat", "Hund", "犬"])
def test_words_find_what_the_index_finds(server: Server, opened: tuple[SearchIndex, Model], words: str) -> None:
    index, model = opened
    (hits,) = index.search(model.embed_texts([words]), 5)
    answer = ask(server, f"/api/search?top=5&query={quote(words)}").json
    assert [hit["id"] for hit in answer["hits"]] == [hit.entry.id for hit in hits]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit.score for hit in hits], abs=1e-5)
    assert answer["found"] == len(index)


def test_a_picture_finds_itself(server: Server, opened: tuple[SearchIndex, Model]) -> None:
    (hits,) = opened[0].search(opened[1].embed_texts(["Hund"]), 1)
    reply = ask(server, "/api/search?top=1", "POST", opened[0].stored(hits[0].number), PNG)
    assert [hit["id"] for hit in reply.json["hits"]] == [hits[0].entry.id]
    assert reply.json["hits"][0]["score"] == pytest.approx(1, abs=1e-4)


def test_pages_fit_together(server: Server) -> None:
    whole = ask(server, "/api/search?query=Hund&top=30").json["hits"]
    pages = [ask(server, f"/api/search?query=Hund&top=8&offset={n}").json["hits"] for n in range(0, 32, 8)]
    assert [hit["number"] for page in pages for hit in page] == [hit["number"] for hit in whole]
    assert len(pages[3]) == len(whole) - 24


def test_thumbnails_are_made_here_and_bounded(server: Server) -> None:
    (hit,) = ask(server, "/api/search?query=Hund&top=1").json["hits"]
    reply = ask(server, f"/pictures/{hit['number']}")
    assert reply.headers["Content-Type"] == "image/jpeg"
    with Image.open(io.BytesIO(reply.body)) as picture:
        assert picture.format == "JPEG"
        assert max(picture.size) <= 256


@pytest.mark.parametrize("path", ["/api/search?query=Hund&top=1", "/pictures/0"])
def test_an_index_that_has_changed_is_said_to_be_so(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    def gone(*_: object) -> None:
        raise UserError("/secret/index: the index has changed since it was opened; open it again")

    monkeypatch.setattr(server.index, "entry", gone)
    monkeypatch.setattr(server.thumbnails, "get", gone)
    reply = ask(server, path)
    assert reply.status == 503
    assert "start the server again" in reply.json["error"]
    assert "secret" not in reply.json["error"]
    assert "/secret/index: the index has changed" in capsys.readouterr().err


def test_every_answer_says_that_nothing_else_may_run_or_be_fetched(server: Server) -> None:
    for path in ("/", "/api/index", "/nowhere"):
        headers = ask(server, path).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    page = ask(server, "/").body.decode()
    assert "http://" not in page
    assert "https://" not in page
    assert "innerHTML" not in page


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/pictures/../built.json", "/pictures/..%2fbuilt.json", "/pictures/0/../../built.json",
        "/pictures/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/pictures//etc/passwd", "/pictures/-1",
        "/pictures/999999999", "/pictures/1e3", "/parts/000000.json", "/page.html", "/pictures/0x0",
        "http://127.0.0.1/parts/000000.json", "/pictures/1048576",
    ],
)  # fmt: skip
def test_no_path_of_a_client_is_one_of_a_file(server: Server, path: str) -> None:
    reply = ask(server, path)
    assert reply.status == 404
    assert set(reply.json) == {"error"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/search", 400), ("/api/search?query=", 400), (f"/api/search?query={'a' * 1001}", 400),
        ("/api/search?query=a&top=0", 400), ("/api/search?query=a&top=101", 400), ("/api/search?query=a&offset=1000", 400),
        ("/api/search?query=a&top=1e1", 400), ("/api/search?query=%ff", 400), ("/api/search?" + "a=b&" * 20, 400),
        ("/pictures/0?size=huge", 400), ("http://[/", 400), ("/api/search?query=%E2%80%8B", 400),
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_refused(server: Server, path: str, status: int) -> None:
    assert ask(server, path).status == status


def test_bodies_that_are_no_pictures_are_refused(server: Server, tmp_path: Path) -> None:
    def post(body: bytes, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(server, "/api/search", "POST", body, {**PNG, **named}).status

    good = png(tmp_path)
    assert post(good) == 200
    assert post(good[: len(good) // 2]) == 400
    assert post(b"<svg onload=alert(1)>") == 400
    assert post(b"PK\x03\x04 no npz") == 400
    assert post(b"x", Content_Type="text/plain") == 415
    assert post(b"x", Content_Type="application/json") == 415
    assert post(b"", Content_Length="-1") == 411
    assert post(b"", Content_Length=str(MAX_BODY + 1)) == 413
    assert post(b"", Content_Length="9" * 40) == 411
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    assert post(bomb.getvalue()) == 400
    assert ask(server, "/api/search?query=Hund").status == 200, "and the next one is answered"


def test_other_sites_cannot_ask_by_a_name_of_their_own(server: Server) -> None:
    assert ask(server, "/api/index", headers={"Host": "evil.example"}).status == 421
    assert ask(server, "/api/index", headers={"Host": "["}).status == 400
    assert ask(server, "/api/index", headers={"Host": f"localhost:{server.server_address[1]}"}).status == 200


@pytest.mark.long
def test_names_and_captions_are_text_and_nothing_else(seeing: Path, album: Path, tmp_path: Path) -> None:
    index_pictures(seeing, album, tmp_path / "index")
    index = SearchIndex(tmp_path / "index")
    with serving(index, index.open_model()) as server:
        reply = ask(server, "/api/search?query=Hund")
        assert reply.headers["Content-Type"] == "application/json"
        assert EVIL.replace("/", "") + ".png" in {hit["id"] for hit in reply.json["hits"]}


def test_a_client_that_asks_too_often_is_told_to_wait(opened: tuple[SearchIndex, Model]) -> None:
    with serving(*opened, per_second=2) as server:
        replies = [ask(server, "/api/search?query=Hund&top=1") for _ in range(8)]
    assert [reply.status for reply in replies[:4]] == [200] * 4
    assert replies[-1].status == 429
    assert replies[-1].headers["Retry-After"] == "1"


def test_the_rate_flows_in_again_and_each_address_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rate = Rate(2)
    assert [rate.allows("a") for _ in range(5)] == [True] * 4 + [False]
    assert rate.allows("b")
    now = 0.5
    assert [rate.allows("a") for _ in range(2)] == [True, False]


def test_fifty_clients_at_once_are_all_answered_and_the_page_stays_quick(server: Server) -> None:
    started = threading.Barrier(51)

    def client(number: int) -> tuple[int, float]:
        started.wait()
        start = time.monotonic()
        reply = ask(server, f"/api/search?top=3&query={quote('Hund' if number % 2 else '犬')}")
        return reply.status if len(reply.json["hits"]) == 3 else 0, time.monotonic() - start

    with ThreadPoolExecutor(50) as clients:
        asked = [clients.submit(client, number) for number in range(50)]
        started.wait()
        start = time.monotonic()
        assert ask(server, "/").status == 200
        page = time.monotonic() - start
        found = [one.result() for one in asked]
    assert [status for status, _ in found] == [200] * 50
    assert page < 5, "the page itself waits for no query"


class _Slow:
    """Embeds when it is allowed to."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def embed_texts(self, texts: list[str], /) -> Floats:
        self.entered.set()
        assert self.go.wait(30)
        self.batches.append(len(texts))
        return np.zeros((len(texts), 2), np.float32)

    def read_picture(self, content: bytes, /) -> Any:
        return content

    def embed_read(self, pictures: list[Any], /) -> Floats:
        raise RuntimeError("a defect")

    def nearest(
        self, queries: Floats, limit: int, /
    ) -> tuple[Floats, "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"]:
        return np.zeros((len(queries), limit), np.float32), np.full((len(queries), limit), 7)


def test_queries_that_wait_are_embedded_together_and_a_full_queue_says_so() -> None:
    slow = _Slow()
    queries = Queries(slow, slow, 1, waiting=3)
    first = queries.ask("a")
    assert slow.entered.wait(30)
    others = [queries.ask(text) for text in "bcd"]
    with pytest.raises(BusyError):
        queries.ask("e")
    slow.go.set()
    assert [one.result(30) for one in (first, *others)] == [[(7, 0.0)]] * 4
    assert slow.batches == [1, 3]
    with pytest.raises(RuntimeError, match="a defect"):
        queries.ask(b"picture").result(30)
    assert queries.ask("f").result(30) == [(7, 0.0)], "a defect in one query ends no thread"
    queries.close()


class _Decoding(_Slow):
    """Decodes when it is allowed to, and embeds at once."""

    def read_picture(self, content: bytes, /) -> Any:
        self.entered.set()
        assert self.go.wait(30)
        return content

    def embed_texts(self, texts: list[str], /) -> Floats:
        return np.zeros((len(texts), 2), np.float32)

    def embed_read(self, pictures: list[Any], /) -> Floats:
        return np.ones((len(pictures), 2), np.float32)


def test_words_wait_for_no_picture_that_is_decoded_and_pictures_wait_for_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queries_module, "DECODED_AT_ONCE", 1)
    monkeypatch.setattr(queries_module, "DECODING_PATIENCE", 0.05)
    slow = _Decoding()
    queries = Queries(slow, slow, 1)
    with ThreadPoolExecutor(1) as others:
        picture = others.submit(queries.ask, b"large")
        assert slow.entered.wait(30)
        assert queries.ask("words").result(30) == [(7, 0.0)]
        with pytest.raises(BusyError):
            queries.ask(b"another")
        slow.go.set()
        assert picture.result(30).result(30) == [(7, 0.0)]
    queries.close()


def test_a_large_picture_costs_more_of_the_rate_and_a_low_rate_answers_too(
    opened: tuple[SearchIndex, Model], tmp_path: Path
) -> None:
    large = io.BytesIO()
    Image.new("1", (3000, 2000)).save(large, "PNG")
    with serving(*opened, per_second=2.5) as server:
        for _ in range(2):  # 6 million pixels cost as much as three queries of words, of five
            last = ask(server, "/api/search", "POST", large.getvalue(), PNG).status
        assert last == 429
    rate = Rate(0.1)
    assert [rate.allows("a"), rate.allows("a")] == [True, False], "as often as that, and not never"
    assert Rate(5).allows("a", 1000), "what costs more than the bucket holds takes all of it"


def test_a_full_queue_is_answered_503(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: str | bytes) -> None:
        raise BusyError

    monkeypatch.setattr(server.queries, "ask", full)
    reply = ask(server, "/api/search?query=Hund")
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")


def test_connections_are_bounded_and_slow_bodies_end(
    opened: tuple[SearchIndex, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(server_module.Handler, "timeout", 0.5)
    with serving(*opened) as server:
        held = [socket.create_connection(("127.0.0.1", int(server.server_address[1]))) for _ in range(2)]
        held[0].sendall(
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
        )
        _wait(lambda: server._places._value == 0)
        assert ask(server, "/api/index").status == 503
        _wait(lambda: server._places._value == 2)
        assert ask(server, "/api/index").status == 200, "who sends nothing loses the connection"
        for one in held:
            one.close()


def test_a_head_that_trickles_in_loses_the_connection(
    opened: tuple[SearchIndex, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module.Handler, "timeout", 0.4)
    with serving(*opened) as server:
        host, port = str(server.server_address[0]), int(server.server_address[1])
        with socket.create_connection((host, port)) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\n")
            start = time.monotonic()
            with suppress(ConnectionError):
                while time.monotonic() < start + 10 and server._places._value < MAX_CONNECTIONS:
                    slow.sendall(b"X: y\r\n")
                    time.sleep(0.1)
            assert time.monotonic() - start < 5
        _wait(lambda: server._places._value == MAX_CONNECTIONS)
        assert ask(server, "/").status == 200


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_connection_is_kept_for_several_requests(server: Server) -> None:
    connection = HTTPConnection(str(server.server_address[0]), int(server.server_address[1]), timeout=30)
    for _ in range(3):
        connection.request("GET", "/api/index")
        assert connection.getresponse().read()
    connection.close()


def test_loopback_is_told_from_other_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.3.2.1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"))
