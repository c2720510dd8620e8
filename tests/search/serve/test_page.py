"""The page in a real browser: queries in two scripts, a dropped picture, pages, and names that are scripts."""

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m3p.search.build import index_pictures
from m3p.search.index import SearchIndex
from m3p.search.serve.server import Server
from tests.search.conftest import EVIL, draw
from tests.search.serve.browser import REQUIRED, Tab, chromium, find_chromium
from tests.search.serve.conftest import ask, serving

pytestmark = pytest.mark.program

NAMES = "[...document.querySelectorAll('#grid img')].map(one => one.alt)"
DROP = """(() => {
  const bytes = Uint8Array.from(atob("%s"), one => one.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "mine.png", {type: "image/png"}));
  document.body.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: data}));
})()"""


@pytest.fixture(scope="module")
def server(seeing: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves thirty pictures, one of which has a script for a name."""
    folder = tmp_path_factory.mktemp("page")
    for number in range(29):
        draw(folder / "album" / f"p{number:02}.png", number)
    draw(folder / "album" / f"{EVIL.replace('/', '')}.png", 29)
    index_pictures(seeing, folder / "album", folder / "index")
    index = SearchIndex(folder / "index")
    with serving(index, index.open_model()) as running:
        yield running


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A browser; without one the tests are skipped, but never where .ci/run has installed it."""
    program = find_chromium()
    if program is None:
        assert os.environ.get(REQUIRED) != "required", "Chromium is not installed"
        pytest.skip("no Chromium is installed (apt-get install chromium); nothing else runs the page's script")
    with chromium(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def api(server: Server, query: str, offset: int = 0) -> list[str]:
    from urllib.parse import quote

    answer: dict[str, Any] = ask(server, f"/api/search?query={quote(query)}&offset={offset}").json
    return [hit["id"] for hit in answer["hits"]]


def test_a_reader_searches_by_words_and_by_a_picture_and_turns_pages(server: Server, tab: Tab) -> None:
    tab.call("Page.navigate", url=server.url)
    tab.wait("document.getElementById('about')?.textContent.includes('30 pictures')")
    for words in ("犬 猫", "Hund"):
        tab.evaluate("document.getElementById('query').select()")
        tab.call("Input.insertText", text=words)
        tab.evaluate("document.getElementById('form').requestSubmit()")
        tab.wait(f"document.getElementById('status').textContent.startsWith('“{words}”')")
        assert tab.evaluate(NAMES) == api(server, words)[:24]
    assert tab.wait("[...document.querySelectorAll('#grid img')].some(one => one.complete && one.naturalWidth === 32)")
    tab.evaluate("document.activeElement.blur()")
    tab.key("ArrowRight")
    tab.wait("document.body.dataset.shown === '24:6'")
    assert tab.evaluate(NAMES) == api(server, "Hund", 24)
    assert tab.evaluate("document.getElementById('next').disabled")
    tab.evaluate("document.getElementById('previous').click()")
    tab.wait("document.body.dataset.shown === '0:24'")
    _a_picture_is_dropped(server, tab)
    assert tab.evaluate("document.title") == "Picture search", "no name ran as a script"
    assert tab.evaluate("document.querySelectorAll('#grid script, #grid [onerror]').length") == 0


def _a_picture_is_dropped(server: Server, tab: Tab) -> None:
    """It finds itself; what is no picture is refused in words."""
    entry = next(part.table() for part in server.index.parts)
    row = entry.id.index("p07.png")
    stored = server.index.stored(int(server.index.parts[0].numbers[row]))
    tab.evaluate(DROP % base64.b64encode(stored).decode())
    tab.wait("document.getElementById('status').textContent.startsWith('Pictures like mine.png')")
    assert tab.evaluate(NAMES)[0] == "p07.png"
    tab.evaluate("document.querySelector('#grid button').click()")
    assert tab.wait("document.getElementById('large').open")
    tab.evaluate("document.getElementById('large').close()")
    tab.evaluate(DROP % base64.b64encode(b"no picture").decode())
    tab.wait("document.getElementById('status').classList.contains('error')")


def test_dark_and_light_are_the_readers_own(server: Server, tab: Tab) -> None:
    colours = []
    for scheme in ("light", "dark"):
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        tab.call("Page.navigate", url=server.url)
        tab.wait("document.getElementById('about')?.textContent.includes('30 pictures')")
        colours.append(tab.evaluate("getComputedStyle(document.querySelector('button')).backgroundColor"))
    assert colours[0] != colours[1]
