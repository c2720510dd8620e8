"""The one reader of records: which captions a sample has, in the layouts in which people keep them.

Index, preparation, lint, training and evaluation all ask here, so that they judge a record alike. Layouts, first match first:

    KEY.json {"captions": {"en": ["a dog", ...], "de": "ein Hund"}}    the project's own
    KEY.json {"captions": [...]} or "...", ["a dog", ...] as a whole   in the language of the source
    KEY.json {"caption_en": ..., "caption_de": ...}                    `caption` beside them is in the language of the source
    KEY.json {"en": [...], "de": [...]}                                lists of texts under codes of languages
    KEY.json {"caption": ["a dog", ...]}                               in the language of the source
    KEY.txt, KEY.0.txt, KEY.1.txt, ..., KEY.de.txt                     each line a caption
    KEY.json {"caption": "a dog"}                                      in the language of the source (img2dataset, with KEY.txt)

Anything else has no captions, and is a bad sample.
"""

import json
import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import NamedTuple

import orjson

from m3p.data.languages import is_language, is_language_of_field
from m3p.errors import BadSample

Members = Mapping[str, bytes | memoryview]
"""Contents of a sample's files by extension: "json", "jpg", "regions.npz"."""

LARGEST_FILE = 16 * 2**20
"""Bytes of a text or JSON file of a sample. A larger one is a bad sample: it is no caption, and would fill the memory."""
LONGEST_CODE = 100
"""Characters of a code of a language."""
PUBLISHED_ID = "published_id"
"""Field with the name of a picture in a published set, SET/ID: pictures of one such name are one picture in all sources."""
OWN_FIELDS = ("id", "concept", "category", "captions", PUBLISHED_ID)
"""Fields of a record that mean something to this program, whatever the layout."""
OBJECT = "captions in KEY.json by language"
LIST = "captions in KEY.json without a language"
FIELDS = "a field of KEY.json for each language (caption_de)"
ROOT = "KEY.json that is an object of language and captions"
ONE_LINE = "KEY.txt of one caption"
LINES = "KEY.txt of several lines, each taken as a caption"
FILES = "several text files for a picture (KEY.0.txt, KEY.de.txt), each line taken as a caption"
CAPTION = "the field caption of KEY.json"
FROM_FILES = (ONE_LINE, LINES, FILES)
_FIELD = re.compile(r"captions?[_-](.+)")
_NUMBERED = re.compile(r"\d{1,4}\.txt")
_SILENT = {"Cc", "Cf", "Cn", "Cs", "Zl", "Zp", "Zs"}
"""Unicode's categories of spaces, of control characters and of what has no sign."""
_PLACEHOLDER = re.compile(r"nan|none|null|n/a|<na>|<unk>|\?+|-+|\.+|_+", re.IGNORECASE)
_PUBLISHED = re.compile(r"[a-z0-9][a-z0-9_-]*/\S+")


class Record(NamedTuple):
    """What the text files of a pair say."""

    id: str
    """Its name; "" where it has none."""
    concept: str
    """Pictures of one concept share their captions; "" where it has none."""
    captions: Mapping[str, object]
    """Language -> a text or a list of texts, as stored: `choose_captions` checks them."""
    layout: str
    """Where the captions were found: one of the constants above, in words."""
    unnamed: bool
    """Whether captions name no language, so that they are in that of the source."""
    fields: Mapping[str, object]
    """The JSON."""
    used: Collection[str]
    """Fields of the JSON that captions were read from, but for `captions`; `caption` also where KEY.txt repeats it."""

    @property
    def published(self) -> str:
        """Its picture's name in published sets, SET/ID; "" where it has none, or one that is none."""
        name = self.fields.get(PUBLISHED_ID)
        return name if isinstance(name, str) and is_published_id(name) else ""

    @property
    def unread(self) -> list[str]:
        """Fields of the JSON that nothing is read from."""
        return [name for name in self.fields if name not in OWN_FIELDS and name not in self.used]


def is_published_id(text: str) -> bool:
    """Tell whether a text is SET/ID."""
    return bool(_PUBLISHED.fullmatch(text))


def passage(content: bytes | memoryview | None) -> str:
    """Return the passage that the bytes of a KEY.txt hold (None: there is none). Raises BadSample."""
    if content is None:
        raise BadSample("no member txt")
    text = _text(content, "txt").strip()
    if not says_something(text):
        raise BadSample("an empty text")
    return text


def says_something(text: str) -> bool:
    """Tell whether a text, without spaces around it, has more than spaces and characters that show nothing."""
    if text.isprintable():  # nearly all
        return bool(text)
    return any(unicodedata.category(char) not in _SILENT for char in text)


def read_record(members: Members, language: str | None) -> Record:
    """Read the JSON and text files of a pair. `language` is that of captions that name none. Raises BadSample."""
    content = _json(members["json"]) if "json" in members else {}
    if isinstance(content, dict):
        stored = content.get("captions")
        if isinstance(stored, dict):  # nearly all: the rest is not worth its time to them
            return Record(_name(content, "id"), _name(content, "concept"), stored, OBJECT, False, content, ())
    fields = {"captions": content} if _is_list_of_texts(content) else content
    if not isinstance(fields, dict):
        raise BadSample("json is not an object")
    captions, layout, used, unnamed = find_captions(fields, members, language)
    return Record(_name(fields, "id"), _name(fields, "concept"), captions, layout, unnamed, fields, used)


_Found = tuple[Mapping[str, object], str, Collection[str], bool]
"""Captions by language, the layout, the fields that they were read from, and whether they name no language."""


def find_captions(fields: dict[str, object], members: Members, language: str | None) -> _Found:
    """Return the captions of the JSON `fields` and of the text files of a sample. Raises BadSample where no layout fits.

    Captions that name no language are in that of the record's field `language` or `lang`, as in LAION's tables; in `language`
    where it has none.
    """
    own = {name: code for name in fields if (code := _own_language(name, fields[name]))}
    said = set(own.values())
    found = _find_captions(fields, members, said.pop() if len(said) == 1 else language)
    captions, layout, used, unnamed = found
    return (captions, layout, (*used, *own), False) if unnamed and own and not said else found


def _find_captions(fields: dict[str, object], members: Members, language: str | None) -> _Found:
    """Return captions as `find_captions` does; those that name no language are in `language`."""
    stored = fields.get("captions")
    if isinstance(stored, dict):
        return stored, OBJECT, (), False
    if "captions" in fields:
        if not (stored and isinstance(stored, str | list)):
            raise BadSample("captions is not an object of language -> texts, nor a list of texts")
        return {_known(language, "captions"): stored}, LIST, (), True
    by_field = {name: code for name in fields if (code := _language_of(name, fields[name]))}
    if by_field:
        captions = {code: fields[name] for name, code in by_field.items()}
        plain = "caption" in fields and _known(language, "caption") not in captions
        if plain:
            captions[_known(language, "caption")] = fields["caption"]
        return captions, FIELDS, (*by_field, *(["caption"] if plain or _repeats(fields, captions) else [])), plain
    root = {name: value for name, value in fields.items() if is_language(name) and _is_list_of_texts(value)}
    if root:
        return root, ROOT, root, False
    caption = fields.get("caption")
    if isinstance(caption, list):
        return {_known(language, "caption"): caption}, CAPTION, ("caption",), True
    texts = _text_files(members, language)
    if texts:
        # `caption` beside KEY.txt is the same caption once more, as img2dataset writes it; or another, which is not read.
        used = ("caption",) if _repeats(fields, texts[0]) else ()
        return *texts, used, any(name == "txt" or _NUMBERED.fullmatch(name) for name in members)
    if isinstance(caption, str):
        return {_known(language, "caption"): caption}, CAPTION, ("caption",), True
    others = ", ".join(map(repr, list(fields)[:8]))
    raise BadSample(
        "json has no captions (captions, caption_LANG), and there is no KEY.txt"
        + (f"; its fields are {others}" if others else "")
    )


def _repeats(fields: Mapping[str, object], captions: Mapping[str, object]) -> bool:
    """Tell whether the field `caption` says once more what the captions of a language say: one of them, or all in a row."""
    caption = fields.get("caption")
    if not isinstance(caption, str):
        return False
    listed = [texts if isinstance(texts, list) else [texts] for texts in captions.values()]
    if any(caption in texts for texts in listed):  # nearly always
        return True
    words = caption.split()
    return any(
        words in [str(text).split() for text in texts] or words == " ".join(map(str, texts)).split() for texts in listed
    )


def _text_files(members: Members, language: str | None) -> tuple[dict[str, list[str]], str] | None:
    """Return the captions of KEY.txt, KEY.0.txt, KEY.de.txt, ..., and the layout; None without any. Raises BadSample."""
    found: dict[str, list[str]] = {}
    names = text_files(members)
    for name in names:
        stem = name.removesuffix(".txt")
        code = stem if stem != name and not stem.isdigit() else _known(language, name)
        lines = [line.strip() for line in _text(members[name], name).splitlines() if line.strip()]
        if not lines:
            raise BadSample("an empty text" if name == "txt" else f"{name} is empty")
        found.setdefault(code, []).extend(lines)
    if not names:
        return None
    if len(names) > 1 or names[0] != "txt":
        return found, FILES
    return found, LINES if len(found[_known(language, "txt")]) > 1 else ONE_LINE


def text_files(extensions: Collection[str]) -> list[str]:
    """Return which of a sample's extensions are text files with captions: "txt", "0.txt", "de.txt"; numbered ones in order."""
    found = [name for name in extensions if name == "txt" or (name.endswith(".txt") and _is_caption_file(name))]
    return sorted(found, key=lambda name: (name != "txt", len(name), name)) if len(found) > 1 else found


def _is_caption_file(name: str) -> bool:
    return bool(_NUMBERED.fullmatch(name)) or is_language(name.removesuffix(".txt"))


def _language_of(name: str, value: object) -> str | None:
    """Return the language of the field `caption_de`; None for other fields."""
    match = _FIELD.fullmatch(name)
    if not match or not isinstance(value, str | list) or not value:
        return None
    code = match[1].replace("_", "-")
    # "caption_id": "123" numbers a caption, and is none in Indonesian; so is "caption_no": "17" none in Norwegian.
    is_number = isinstance(value, str) and (not any(map(str.isalpha, value)) or (code == "id" and " " not in value))
    return code if is_language_of_field(code) and not is_number else None


def _own_language(name: str, value: object) -> str | None:
    """Return the language that a field says a record is in; None for other fields, and for values that are no code."""
    return value if name.lower() in ("language", "lang") and isinstance(value, str) and is_language(value) else None


def _known(language: str | None, where: str) -> str:
    if language is None:
        raise BadSample(
            f"json has no captions by language, and the manifest names no language for {where} (`m3p index --language`)"
        )
    return language


def _json(content: bytes | memoryview) -> object:
    """Parse a KEY.json. Raises BadSample."""
    if len(content) > LARGEST_FILE:
        raise BadSample(f"json has more than {LARGEST_FILE:,} bytes")
    try:
        return orjson.loads(content)
    except ValueError:
        pass
    try:
        # What is no JSON by the book, and what Python's own parser takes all the same: pandas writes NaN.
        record = json.loads(bytes(content))
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, or a number of thousands of digits
        raise BadSample(f"json cannot be read ({error})") from error
    _check_unicode(record)
    return record


def _check_unicode(record: object) -> None:
    """Raise BadSample if halves of characters ("\\ud800") are spelled where text is read: nothing else can write them.

    orjson refuses them, so that only what Python's own parser has taken need be looked through.
    """
    fields = record if isinstance(record, dict) else {"json": record}
    for name, value in fields.items():
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            field = name.encode(errors="backslashreplace").decode()
            raise BadSample(f"{field} is not Unicode text ({error.reason})") from error


def _text(content: bytes | memoryview, name: str) -> str:
    """Decode a text file. Raises BadSample."""
    if len(content) > LARGEST_FILE:
        raise BadSample(f"{name} has more than {LARGEST_FILE:,} bytes")
    try:
        text = str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise BadSample(f"{name} is not UTF-8 ({error.reason})") from error
    if "\0" in text:
        raise BadSample(f"{name} holds characters of 0, as texts in UTF-16 do; the rule is UTF-8")
    return text.removeprefix("\ufeff")  # the mark that Windows writes in front


def _name(fields: dict[str, object], field: str) -> str:
    """Return the `id` or `concept` of a record; "" where it has none, or one that says nothing: null, "" or pandas' NaN."""
    value = fields.get(field)
    return "" if value is None or value != value else str(value)


def choose_captions(stored: Mapping[str, object], languages: Collection[str] | None) -> dict[str, list[str]]:
    """Return the captions in `languages` (None: all) as lists. Raises BadSample."""
    chosen: dict[str, list[str]] = {}
    for language, texts in stored.items():
        if languages is not None and language not in languages:
            continue
        if len(language) > LONGEST_CODE:
            raise BadSample(f"captions are under {language[:40]!r} and more, which is no code of a language")
        listed = [texts] if isinstance(texts, str) else texts
        if not isinstance(listed, list) or not listed or not all(map(is_caption, listed)):
            raise BadSample(
                f"captions.{language} is not a list of texts, or one of them is empty or holds characters of 0"
            )
        chosen[language] = listed
    if not chosen:
        raise BadSample(f"no caption in {', '.join(languages or [])}" if languages else "no caption")
    return chosen


def is_caption(text: object) -> bool:
    """Tell whether a value is a caption: a text that says something, without the character 0, which no KEY.txt may hold."""
    return isinstance(text, str) and says_something(text.strip()) and "\0" not in text


def is_placeholder(text: str) -> bool:
    """Tell whether a caption only says that there is none, as tables of other programs do: nan, None, N/A, ???."""
    return bool(_PLACEHOLDER.fullmatch(text.strip()))


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
