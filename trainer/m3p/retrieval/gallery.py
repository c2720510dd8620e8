"""The pictures it found: what a few queries brought up, as one web page that needs nothing else, and as one picture."""

import base64
import html
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont, features

from m3p.html import document
from m3p.terminal import one_line

_GREEN = (34, 160, 70)
_INK = (30, 30, 30)
_TILE, _GAP, _BORDER, _LINE = 96, 8, 4, 24
_LANGUAGE = 20
"""Characters of a language that are written."""
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
)  # looked for by name where the system keeps its fonts; any that is absent is passed over

_MIME = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp"}

_STYLE = """
:root { color-scheme: light dark; --right: #22a046; }
body { font: 1rem/1.4 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
section { margin: 1.5rem 0; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 0 0 .5rem; }
h2 .language { font: .8rem ui-monospace, monospace; border: 1px solid; border-radius: .3rem; padding: .1rem .4rem; }
ol { display: flex; flex-wrap: wrap; gap: .75rem; list-style: none; margin: 0; padding: 0; }
figure { margin: 0; width: 10rem; }
img { width: 100%; height: 10rem; object-fit: contain; border: 4px solid transparent; border-radius: .4rem;
  background: #fff; box-sizing: border-box; box-shadow: 0 0 0 1px #8886; }
.right img { border-color: var(--right); }
figcaption { font-size: .85rem; font-variant-numeric: tabular-nums; }
"""
_EXPLANATION = (
    """<p>Each query and its best pictures, best first, with their scores. A green border marks a right one.</p>"""
)


@dataclass(frozen=True)
class Finding:
    """One query and its top pictures, best first: (bytes of a JPEG, PNG or WebP file, score, whether it is right)."""

    language: str
    query: str
    pictures: list[tuple[bytes, float, bool]]


def html_page(findings: Sequence[Finding], title: str = "The pictures it found") -> str:
    """Return one self-contained page: pictures inside, text escaped, nothing fetched and no script allowed.

    Raises ValueError for a picture that is no JPEG, PNG or WebP.
    """
    sections = "\n".join(_section(finding) for finding in findings)
    return document(title, _STYLE, f"{_EXPLANATION}\n{sections}")


def _section(finding: Finding) -> str:
    language, query = html.escape(finding.language), html.escape(finding.query)
    figures = []
    for place, (data, score, right) in enumerate(finding.pictures, start=1):
        verdict = "right" if right else "wrong"
        source = f"data:{_mime(data)};base64,{base64.b64encode(data).decode()}"
        figures.append(
            f'<li><figure class="{verdict}"><img src="{source}" alt="place {place}, {verdict}">'
            f"<figcaption>{place}. {score:.3f}{' ✓' if right else ''}</figcaption></figure></li>"
        )
    heading = f'<span class="language">{language}</span> <span lang="{language}" dir="auto">{query}</span>'
    return f"<section>\n<h2>{heading}</h2>\n<ol>{''.join(figures)}</ol>\n</section>"


def _mime(data: bytes) -> str:
    for magic, mime in _MIME.items():
        if data.startswith(magic):
            return mime
    raise ValueError(f"a picture begins with {data[:4]!r}: neither JPEG, PNG nor WebP")


def contact_sheet(findings: Sequence[Finding]) -> Image.Image:
    """Return one RGB picture: a row a query, with the query above it and right pictures framed in green.

    A query in a script that no font here can draw properly is left out; its language is named all the same.
    """
    columns = max((len(finding.pictures) for finding in findings), default=1)
    row = _LINE + _TILE + _GAP
    width, height = max(columns, 1) * (_TILE + _GAP) + _GAP, max(len(findings), 1) * row + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, finding in enumerate(findings):
        top = _GAP + number * row
        _write(draw, (_GAP, top), finding, width - 2 * _GAP)
        for column, (data, _score, right) in enumerate(finding.pictures):
            corner = (_GAP + column * (_TILE + _GAP), top + _LINE)
            sheet.paste(_tile(data), corner)
            if right:
                box = (*corner, corner[0] + _TILE - 1, corner[1] + _TILE - 1)
                draw.rectangle(box, outline=_GREEN, width=_BORDER)
    return sheet


def _tile(data: bytes) -> Image.Image:
    """Return the picture fitted into a white square."""
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    inside = _TILE - 2 * _BORDER
    scale = inside / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    tile.paste(picture, ((_TILE - picture.width) // 2, (_TILE - picture.height) // 2), picture)
    return tile


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], finding: Finding, width: int) -> None:
    """Write the language and, where a font has its letters, the query, cut to `width` pixels."""
    tag = ImageFont.load_default(size=14)
    language = one_line(finding.language)[:_LANGUAGE]
    draw.text(place, language, fill=_GREEN, font=tag)
    query = unicodedata.normalize("NFC", " ".join(finding.query.split()))
    font = _font_for(query)
    if font is None:
        return
    left = place[0] + round(draw.textlength(f"{language}  ", font=tag))
    if draw.textlength(query, font=font) > width - left:
        while query and draw.textlength(f"{query}…", font=font) > width - left:
            query = query[:-1]
        query += "…"
    draw.text((left, place[1]), query, fill=_INK, font=font)


def _font_for(text: str) -> ImageFont.FreeTypeFont | None:
    """Return the first font that has every letter of `text`, None if there is none or its script needs a shaper."""
    shaped = any(unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c).startswith("M") for c in text)
    if shaped and not features.check("raqm"):
        return None
    return next((font for font in _fonts() if all(_has(font, letter) for letter in set(text) - {" "})), None)


@lru_cache(maxsize=1)
def _fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    found = []
    default = ImageFont.load_default(size=14)
    if isinstance(default, ImageFont.FreeTypeFont):
        found.append(default)
    for name in _FONTS:
        try:
            found.append(ImageFont.truetype(name, 14))
        except OSError:  # not on this system
            continue
    return tuple(found)


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a font draws a letter otherwise than a code point that stands for no letter."""
    return _drawing(font, letter) != _drawing(font, "\U0010ffff")


def _drawing(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
