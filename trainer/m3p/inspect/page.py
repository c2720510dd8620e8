"""The page of `m3p data peek`: everything inside one file, all text escaped (captions are a stranger's), no script allowed."""

import html
from collections.abc import Sequence

from m3p.html import document
from m3p.inspect.peek import Line, Shown, ShownTurn, Word

_STYLE = """
:root { color-scheme: light dark; --masked: #d9822b; --switched: #2f7ed8; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
article { display: grid; grid-template-columns: 12rem minmax(0, 1fr); gap: 1rem; border-top: 1px solid #8886; padding: 1rem 0; }
h2 { font-size: 1.15rem; } h3 { font: .8rem ui-monospace, monospace; margin: 0 0 .5rem; overflow-wrap: anywhere; }
img { max-width: 12rem; max-height: 12rem; border-radius: .3rem; }
.line img { max-width: 6rem; max-height: 6rem; }
dl { margin: 0; } dt { float: left; font: .75rem/1.9 ui-monospace, monospace; min-width: 3.5rem; } dd { margin: 0 0 0 3.5rem; }
.kind { font-size: .8rem; opacity: .75; }
mark { background: none; color: inherit; border-bottom: 2px solid var(--masked); }
.switched mark { border-color: var(--switched); }
ruby rt { font-size: .7rem; color: var(--masked); } .switched ruby rt { color: var(--switched); }
.piece { display: inline-block; white-space: pre; margin-right: .15rem; }
"""
_EXPLANATION = """<p>The samples as the network gets them. Under each sample: what is stored, then every sequence that it is
forwarded in. A masked piece is underlined, with the true one above it; a switched word too, with the word it stands for.</p>"""


def page(turns: Sequence[ShownTurn], title: str) -> str:
    """Return one self-contained HTML page."""
    body = "\n".join(_turn(turn) for turn in turns)
    return document(title, _STYLE, f"{_EXPLANATION}\n{body}")


def _turn(turn: ShownTurn) -> str:
    bad = "".join(f"<li>{html.escape(line)}</li>" for line in turn.bad)
    replaced = f"<p>Bad samples, replaced by their neighbours:</p><ul>{bad}</ul>" if bad else ""
    samples = "\n".join(_sample(sample) for sample in turn.samples)
    return f"<section>\n<h2>{html.escape(turn.title)}</h2>\n{replaced}{samples}\n</section>"


def _sample(sample: Shown) -> str:
    captions = "".join(
        f'<dt>{html.escape(code)}</dt><dd lang="{html.escape(code)}" dir="auto">{html.escape(text)}</dd>'
        for code, texts in sample.captions.items()
        for text in texts
    )
    switched = ""
    if any(word.was for word in sample.switched):
        words = "".join(_word(word) for word in sample.switched)
        switched = f'<p class="switched" dir="auto"><span class="kind">switched:</span> {words}</p>'
    lines = "".join(_line(line) for line in sample.lines)
    return (
        f"<article><div>{_image(sample.picture, 'the stored picture')}</div><div><h3>{html.escape(sample.name)}</h3>"
        f"<dl>{captions}</dl>{switched}{lines}</div></article>"
    )


def _line(line: Line) -> str:
    words = "".join(f'<span class="piece">{_word(word)}</span>' for word in line.words)
    counts = f", {line.regions} regions, {line.masked_regions} masked" if line.regions else ""
    masked = sum(bool(word.was) for word in line.words)
    kind = f"{line.kind}: {len(line.words)} tokens, {masked} masked{counts}"
    picture = _image(line.picture, "the picture as the network sees it")
    return f'<div class="line"><div class="kind">{html.escape(kind)}</div><div dir="auto">{words}</div>{picture}</div>'


def _word(word: Word) -> str:
    text = html.escape(word.text)
    return f"<mark><ruby>{text}<rt>{html.escape(word.was)}</rt></ruby></mark>" if word.was else text


def _image(source: str, description: str) -> str:
    return f'<img src="{html.escape(source)}" alt="{description}">' if source else ""
