import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, features

from m3p.retrieval import gallery
from m3p.retrieval.gallery import Finding, contact_sheet, html_page


def picture(colour: str, kind: str = "PNG", size: tuple[int, int] = (40, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


EVIL = '<script>alert(1)</script>" onload="x'


class Reader(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_self_contained_and_escapes_all_text() -> None:
    found = [Finding(EVIL, f"{EVIL} & 犬", [(picture("red"), 0.5, True), (picture("blue", "JPEG"), -0.25, False)])]
    page = html_page(found, title=EVIL)
    reader = Reader()
    reader.feed(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert all("onload" not in attributes for _, attributes in reader.tags)
    assert reader.text.count(EVIL) >= 4, "what was given is what is read"
    assert not re.search(r"(src|href)=\"(?!data:image/)", page)
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert [str(one["src"]).partition(";")[0] for one in images] == ["data:image/png", "data:image/jpeg"]
    assert base64.b64decode(str(images[0]["src"]).partition(",")[2]) == picture("red")
    assert [attributes["class"] for tag, attributes in reader.tags if tag == "figure"] == ["right", "wrong"]
    assert "1. 0.500 ✓" in reader.text
    assert "2. -0.250" in reader.text


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="neither JPEG, PNG nor WebP"):
        html_page([Finding("en", "dog", [(b"<svg onload=x>", 1.0, True)])])


def test_sheet_frames_right_pictures_only() -> None:
    sheet = contact_sheet([Finding("en", "dog", [(picture("red"), 1.0, False), (picture("blue"), 0.5, True)])])
    pixels = np.asarray(sheet)
    top = gallery._GAP + gallery._LINE
    left = [gallery._GAP, 2 * gallery._GAP + gallery._TILE]
    assert tuple(pixels[top + 1, left[0] + 50]) == (255, 255, 255)
    assert tuple(pixels[top + 1, left[1] + 50]) == gallery._GREEN
    assert tuple(pixels[top + 48, left[0] + 48]) == (255, 0, 0)
    assert tuple(pixels[top + 48, left[1] + 48]) == (0, 0, 255)


def test_sheet_writes_the_query_only_where_a_font_has_its_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_FONTS", ())
    gallery._fonts.cache_clear()
    try:
        assert gallery._font_for("a dog") is not None
        assert gallery._font_for("犬") is None
        assert gallery._font_for("a 犬") is None
        shown = [np.asarray(contact_sheet([Finding("en", text, [])])) for text in ("", "犬", "a dog")]
        assert (shown[0] == shown[1]).all(), "the language alone"
        assert (shown[0] != shown[2]).any()
    finally:
        gallery._fonts.cache_clear()


def test_scripts_that_need_shaping_are_left_out_without_a_shaper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda _name: False)
    assert gallery._font_for("שלום") is None


@pytest.mark.long
def test_sheet_writes_a_language_of_strangers_in_one_short_line() -> None:
    for language in ("con\nx", "\x1b[31mred", "", "x" * 100, "\ud800"):
        assert contact_sheet([Finding(language, "dog", [(picture("red"), 1.0, True)])]).width < 200


def test_sheet_of_long_queries_and_of_nothing() -> None:
    long = Finding("en", "word " * 200, [(picture("red", size=(1, 400)), 1.0, True)])
    assert contact_sheet([long]).width == 2 * gallery._GAP + gallery._TILE
    assert contact_sheet([]).size[0] > 0
