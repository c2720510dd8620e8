"""Shards behind URLs: `memory://` and a local HTTP server; two processes at once, a kill, a full disk, a bad network."""

import contextlib
import errno
import functools
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import fsspec
import pytest

from m3p.atomic import publish
from m3p.data.sample import BadSamples
from m3p.data.shards.index_folder import index_folder
from m3p.data.source import Source, SourceConfig
from m3p.data.storage import cache as caching
from m3p.data.storage import remote as remotely
from m3p.data.storage.cache import Cache, Wanted
from m3p.data.storage.folders import LocalFolder, RemoteFolder, open_folder
from m3p.errors import OneRankError, UserError
from m3p.prepare.shards import ShardWriter
from tests.data.broken import read_many

OWNER = (0, "multilingual_text", 0)
TAR = Wanted(20_480, 20_480)
"""A shard of the fixture below."""


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `broken` answers are refused first, `pause` seconds pass at each of `pauses` places in a file."""

    broken = 0
    short = 0
    """Indexes of which half is sent, without their length."""
    pause, pauses = 0.0, 1
    changed: Callable[[bytes], bytes] | None = None
    """What a damaged server does to shards."""
    endless = ""
    """The ending of files that have 200 MiB whatever their size was."""
    asked: list[str]


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        super().do_HEAD()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.broken > 0:
            self.server.broken -= 1
            self.send_error(503)
            return
        if self.server.short > 0 and self.path.endswith(".idx"):
            self.server.short -= 1
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return
        if self.server.endless and self.path.endswith(self.server.endless):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(
                OSError
            ):  # until the other side has enough; a reader without a bound must not fill the disk
                for _ in range(200):
                    self.wfile.write(bytes(2**20))
            return
        if self.server.changed and self.path.endswith(".tar"):
            content = self.server.changed(Path(self.translate_path(self.path)).read_bytes())
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        if self.server.pause:
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            for place in range(self.server.pauses):
                self.wfile.write(content[1000 * place : 1000 * (place + 1)])
                self.wfile.flush()
                time.sleep(self.server.pause)
            self.wfile.write(content[1000 * self.server.pauses :])
            return
        super().do_GET()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of ten texts."""
    folder = tmp_path_factory.mktemp("remote") / "texts"
    with ShardWriter(folder, "text", 10, "en") as writer:
        for number in range(60):
            writer.write({"txt": f"text {number}".encode()})
    return folder


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(shards.parent))) as made:
        made.asked = []
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/texts"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotely, "FIRST_PAUSE", 0.01)


def texts(source: Source, number: int = 60) -> list[str]:
    return [source.read(index, BadSamples([])).text for index in range(number)]


def local(shards: Path) -> Source:
    return Source(shards, SourceConfig(path=str(shards)), OWNER, 2, None)


def remote(url: str, cache: Cache) -> Source:
    return Source(open_folder(url, cache, "path"), SourceConfig(path=url), OWNER, 2, None)


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_names_that_a_url_cannot_hold_are_spelt_so_that_it_can(shards: Path, url: str, tmp_path: Path) -> None:
    folder = shards.with_name("strange")
    folder.mkdir()
    for number, path in enumerate(sorted(shards.glob("*.tar"))):
        shutil.copy(path, folder / f"{'#?% [ü'[number]} 20%25.{number}.tar")
    index_folder(folder, "text", "en")
    found = RemoteFolder(url.replace("texts", "strange"), Cache(tmp_path, 10**9))
    for shard in found.manifest.shards:
        assert found.file(shard.name, shard.bytes).read_bytes() == (folder / shard.name).read_bytes()


def test_a_source_over_http_gives_what_the_local_one_gives(shards: Path, url: str, tmp_path: Path) -> None:
    assert texts(remote(url, Cache(tmp_path, 10**6))) == texts(local(shards))


def test_a_source_in_memory_gives_what_the_local_one_gives(shards: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe(f"/texts/{path.name}", path.read_bytes())
    assert texts(remote("memory://texts", Cache(tmp_path, 10**6))) == texts(local(shards))


def test_every_shard_is_fetched_once_and_the_next_window_before_it_is_needed(
    server: Server, url: str, tmp_path: Path
) -> None:

    source = remote(url, Cache(tmp_path, 10**6))
    read_many(source, 5, BadSamples([]))
    mine, after = source.order.shards(0)
    deadline = time.monotonic() + 10
    wanted = {f"shard-{number:06d}.tar" for number in [*mine, *after]}
    while {path.name for path in tmp_path.rglob("*.tar")} != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    read_many(source, 60, BadSamples([]))
    again = remote(url, Cache(tmp_path, 10**6))
    read_many(again, 60, BadSamples([]))
    asked = [path for path in server.asked if path.endswith(".tar")]
    assert len(set(asked)) == 6
    # fsspec's http asks for the size first (HEAD), and may read a file in several ranges.
    assert all(asked.count(path) <= 2 for path in asked)


def test_the_cache_stays_within_its_bytes(shards: Path, url: str, tmp_path: Path) -> None:
    size = (shards / "shard-000000.tar").stat().st_size
    source = remote(url, Cache(tmp_path, 4 * size + 2000))
    for index in range(120):
        source.read(index, BadSamples([]))
        assert stored(tmp_path) <= 4 * size + 2000 + 8 * 300, "indexes are small and come beside"
    with pytest.raises(UserError, match=r"data.cache_bytes = 1,000: two windows of http.* lower data.window"):
        remote(url, Cache(tmp_path, 1000))


def test_what_else_lies_in_the_folder_of_the_cache_is_never_deleted(shards: Path, url: str, tmp_path: Path) -> None:
    mine = [tmp_path / name for name in ("thesis.txt", "runs/x/weights.pt", "data_shards/shard-000000.tar")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10**5)
        os.utime(path, (0, 0))
    size = (shards / "shard-000000.tar").stat().st_size
    assert texts(remote(url, Cache(tmp_path, 4 * size + 2000))) == texts(local(shards))
    assert [path.stat().st_size for path in mine] == [10**5] * 3
    assert len(list(tmp_path.rglob("*.tar"))) <= 1 + 4, "it has made room, among its own"
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.txt", "runs", "data_shards", caching.FOLDER}


def test_a_network_that_fails_now_and_then_is_asked_again(
    server: Server, url: str, shards: Path, tmp_path: Path
) -> None:
    source = remote(url, Cache(tmp_path, 10**6))
    server.broken = 3
    assert texts(source) == texts(local(shards))
    assert server.broken == 0


def test_what_cannot_be_had_is_named(server: Server, url: str, tmp_path: Path) -> None:
    source = remote(url, Cache(tmp_path, 10**6))
    server.broken = 1000
    with pytest.raises(OneRankError, match=r"texts/shard-00000\d.tar could not be read in 5 attempts; the last: .*503"):
        texts(source)
    assert not list(tmp_path.rglob("*.tar"))


def test_a_shard_that_changed_since_it_was_indexed_is_refused(shards: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe(f"/changed/{path.name}", path.read_bytes() + (b"x" if path.suffix == ".tar" else b""))
    with pytest.raises(
        OneRankError, match=r"more than 20,480 bytes \(changed since it was indexed, or cut off\)\. Index"
    ):
        texts(remote("memory://changed", Cache(tmp_path, 10**6)))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_makes_room_and_says_so_when_there_is_none(
    shards: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    download, capacity = remotely.download, 3 * 20_480 + 5_000

    def on_small_disk(url: str, partial: Path, limit: int) -> int:
        if stored(tmp_path) + 20_480 * url.endswith(".tar") > capacity:
            partial.write_bytes(b"half")
            raise OSError(number, os.strerror(number))
        return download(url, partial, limit)

    monkeypatch.setattr("m3p.data.storage.cache.download", on_small_disk)
    assert texts(remote(url, Cache(tmp_path, 10**5))) == texts(local(shards))
    capacity = 0
    with pytest.raises(OneRankError, match=r"has no room on the disk of data.cache_folder = .*: free some"):
        remote(url, Cache(tmp_path / "new", 10**6)).read(0, BadSamples([]))


FETCH = """
import sys
from pathlib import Path
from m3p.data.storage.cache import Cache, Wanted
print(Cache(Path(sys.argv[1]), 10**6).get(sys.argv[2], "a.tar", Wanted(20480, 20480)))
"""


def fetching(folder: Path, url: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", FETCH, str(folder), f"{url}/shard-000000.tar"], text=True, stdout=-1)


def wait_for(folder: Path, name: str) -> None:
    deadline = time.monotonic() + 30
    while not list(folder.rglob(name)):
        assert time.monotonic() < deadline, name
        time.sleep(0.01)


@pytest.mark.program
def test_two_processes_fetch_a_file_once_and_a_killed_one_leaves_no_part_of_it(
    server: Server, url: str, shards: Path, tmp_path: Path
) -> None:
    server.pause = 2.0
    killed = fetching(tmp_path, url)
    wait_for(tmp_path, ".a.tar.partial")
    assert Cache(tmp_path, 10**6).get(f"{url}/shard-000000.tar", "a.tar", TAR, wait=False) is None, "it is locked"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = tmp_path / caching.FOLDER / "a.tar"
    assert not kept.exists()
    server.pause = 0.3
    server.asked.clear()
    both = [fetching(tmp_path, url) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [str(kept)] * 2
    assert kept.read_bytes() == (shards / "shard-000000.tar").read_bytes()
    assert len(server.asked) == 1
    assert not list(tmp_path.rglob("*.partial"))


def test_what_another_process_deletes_is_fetched_again(url: str, shards: Path, tmp_path: Path) -> None:
    source = remote(url, Cache(tmp_path, 10**6))
    found = []
    for index in range(60):
        for path in tmp_path.rglob("*.tar"):
            os.unlink(path)
        found.append(source.read(index, BadSamples([])).text)
    assert found == texts(local(shards))


def test_an_index_cut_short_is_fetched_once_more_and_named_only_then(
    server: Server, url: str, shards: Path, tmp_path: Path
) -> None:
    server.short = 1
    assert texts(remote(url, Cache(tmp_path / "once", 10**6))) == texts(local(shards))
    server.short = 1000
    source = remote(url, Cache(tmp_path / "always", 10**6))
    with pytest.raises(
        OneRankError, match=r"\.tar has an index of .* a part of one \(.*\.idx\): run `m3p index` again"
    ):
        source.read(0, BadSamples([]))
    server.short = 0
    assert texts(remote(url, Cache(tmp_path / "always", 10**6))) == texts(local(shards)), "what was kept does not stay"


def test_an_index_damaged_in_the_cache_is_fetched_again(url: str, shards: Path, tmp_path: Path) -> None:
    assert texts(remote(url, Cache(tmp_path, 10**6))) == texts(local(shards))
    for path in tmp_path.rglob("*.idx"):
        path.write_bytes(bytes(path.stat().st_size))  # as a crash of the node leaves it
    assert texts(remote(url, Cache(tmp_path, 10**6))) == texts(local(shards))


def flipped(content: bytes) -> bytes:
    """One bit in the middle of a passage, which no header and no index sees."""
    return content[:514] + bytes([content[514] ^ 1]) + content[515:]


def test_a_damaged_copy_of_the_right_size_does_not_outlive_the_mended_server(
    server: Server, url: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remotely, "FIRST_PAUSE", 0.001)
    server.changed = flipped
    with pytest.raises(OneRankError, match=r"\.tar: its content is not what the manifest says"):
        texts(remote(url, Cache(tmp_path, 10**6)))
    server.changed = None
    assert texts(remote(url, Cache(tmp_path, 10**6))) == texts(local(shards))


@pytest.mark.parametrize("ending", [".tar", ".idx", "manifest.json"])
def test_a_body_without_an_end_is_given_up(
    server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(remotely, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr("m3p.data.storage.folders.LARGEST_MANIFEST", 10**6)
    server.endless = ending
    with pytest.raises(UserError, match=r"it has more than [\d,]+ bytes"):
        texts(remote(url, Cache(tmp_path, 10**6)))
    assert stored(tmp_path) < 40_000, "nothing of it is kept"


def test_a_download_is_on_the_disk_before_it_has_its_name(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: written.append(os.fstat(descriptor).st_ino))
    replace = os.replace

    def replace_written(old: Path, new: Path) -> None:
        assert written == [old.stat().st_ino]
        replace(old, new)

    monkeypatch.setattr("os.replace", replace_written)
    assert Cache(tmp_path, 10**6).get(f"{url}/shard-000000.tar", "a.tar", TAR)


@pytest.mark.parametrize("path", ["https://", "s3:///"])
def test_a_url_of_nothing_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"names no folder; write it in full"):
        open_folder(path, Cache(tmp_path, 10**6), "objectives.x.sources.0.path")


@pytest.mark.parametrize("path", ["pipe:cat shard.tar", "simplecache::http://x/y", "pipe://x"])
def test_commands_and_chains_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objectives.x.sources.0.path = .*(commands are never run|fsspec knows no)"):
        open_folder(path, Cache(tmp_path, 1), "objectives.x.sources.0.path")


def test_a_url_needs_a_cache_and_a_manifest(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is remote: set data.cache_folder"):
        open_folder(url, None, "path")
    with pytest.raises(UserError, match=r"manifest.json does not exist: index the shards"):
        open_folder(f"{url}-not", Cache(tmp_path, 1), "path")
    with pytest.raises(UserError, match=r"fsspec knows no nonsense://"):
        open_folder("nonsense://x", Cache(tmp_path, 1), "path")


def test_a_manifest_is_asked_for_again_and_only_404_means_that_there_is_none(
    server: Server, url: str, shards: Path, tmp_path: Path
) -> None:
    server.broken = 3
    assert texts(remote(url, Cache(tmp_path, 10**6))) == texts(local(shards))
    server.broken = 1000
    with pytest.raises(
        UserError, match=r"manifest.json could not be read in 5 attempts; the last: .*503.*Look whether"
    ):
        open_folder(url, Cache(tmp_path, 10**6), "path")
    server.server_close()
    with pytest.raises(
        UserError, match=r"manifest.json could not be read in 5 attempts; the last: ClientConnectorError"
    ):
        open_folder(url, Cache(tmp_path, 10**6), "path")


def test_a_download_may_take_long_as_long_as_something_comes(
    server: Server, url: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp.client.DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.5))
    fsspec.get_filesystem_class("http").clear_instance_cache()  # a session has the timeout it was made with
    monkeypatch.setattr(remotely, "READ_SECONDS", 0.6)
    server.pause, server.pauses = 0.1, 10
    path = Cache(tmp_path, 10**6).get(f"{url}/shard-000000.tar", "a.tar", TAR)
    assert path is not None
    assert path.read_bytes() == (shards / "shard-000000.tar").read_bytes()
    assert len(server.asked) == 1


def test_a_server_that_accepts_and_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotely, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/texts"
        start = time.monotonic()
        why = r"in 5 attempts; the last: SocketTimeoutError: Timeout on reading data from socket"
        with pytest.raises(UserError, match=why):
            open_folder(url, Cache(tmp_path, 10**6), "path")
        with pytest.raises(OneRankError, match=why):
            Cache(tmp_path, 10**6).get(f"{url}/a.tar", "a.tar", TAR)
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/none"])
def test_a_folder_that_cannot_hold_the_cache_is_named(url: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=rf"data.cache_folder = .*{name}: no cache can be kept there .*; give a folder"):
        open_folder(url, Cache(tmp_path / name, 10**6), "path")
    assert (tmp_path / "file").read_text() == "mine"


def test_both_kinds_of_folder_name_themselves(url: str, shards: Path, tmp_path: Path) -> None:
    assert (str(LocalFolder(shards)), str(RemoteFolder(f"{url}/", Cache(tmp_path, 1)))) == (str(shards), url)


def test_a_cache_that_somebody_deletes_under_way_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, calls = fsspec.filesystem("memory"), list[Path]()
    memory.pipe("/deleted/a.tar", b"content")

    def deletes_first(aside: Path, path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            shutil.rmtree(path.parents[1])
        publish(aside, path)

    monkeypatch.setattr(caching, "publish", deletes_first)
    monkeypatch.setattr(remotely, "FIRST_PAUSE", 0.0)
    cache = Cache(tmp_path, 10**6)
    found = cache.get("memory://deleted/a.tar", "place/a.tar", Wanted(100))
    assert found is not None
    assert found.read_bytes() == b"content"
    assert len(calls) == 2
    with pytest.raises(OneRankError, match=r"memory://deleted/b\.tar does not exist"):
        cache.get("memory://deleted/b.tar", "place/b.tar", Wanted(100))
