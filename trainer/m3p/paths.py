"""Paths, URLs and names that come from a recipe: one rule each for what they may be, and how they are shown.

A password in a URL opens what it names, and is shown and stored nowhere.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, BeforeValidator

from m3p.errors import UserError
from m3p.masking import HIDDEN, masked

__all__ = [
    "HIDDEN",
    "Address",
    "AddressField",
    "FileName",
    "PathField",
    "as_file_name",
    "file_name",
    "masked",
    "opened",
    "user_path",
]

MAX_NAME = 100
"""Characters of a name that becomes a file's or folder's."""
MAX_BYTES = 200
"""Bytes of such a name; file systems take 255, and endings are added to it."""
MAX_PART = 255
"""Bytes of each part of a path, on the file systems in use."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SHELL = re.compile(r"\$(\w+|\{\w+\})")
"""A variable as shells write it, which nothing replaces in a local path."""


class Address(str):
    """A path or URL as it may be shown and stored: without its password. `full` holds what opens it."""

    full: str

    def __new__(cls, text: str) -> "Address":
        """Take a path or URL as it is written in a recipe. `~` becomes the user's folder."""
        full = text if "://" in text else os.path.expanduser(text)
        found = super().__new__(cls, masked(full))
        found.full = getattr(text, "full", full)
        return found


def _address(text: str) -> Address:
    """Return an address of a recipe. Raises ValueError for a local path that no file system takes."""
    if "://" not in text:
        _check_path(text)
    return Address(text)


AddressField = Annotated[str, AfterValidator(_address)]
"""A recipe's field that holds an address."""


def opened(address: str, field: str) -> str:
    """Return what opens `address`, with `${NAME}` replaced by the environment variable NAME. Raises UserError, naming `field`."""
    full: str = getattr(address, "full", address)
    if "://" not in full:
        return full
    if any(f"{before}{HIDDEN}{after}" in full for before, after in ((":", "@"), ("//", "@"), ("=", ""))):
        raise UserError(
            f"{field} = {address}: passwords are not stored with a run; give the address again, or write "
            "${NAME} in the place of the password, and set the environment variable NAME at every start"
        )
    missing = [name for name in _VARIABLE.findall(full) if name not in os.environ]
    if missing:
        raise UserError(
            f"{field} = {address}: the environment variable {missing[0]} is not set; set it before the start"
        )
    return _VARIABLE.sub(lambda found: os.environ[found[1]], full)


def user_path(path: Path) -> Path:
    """Return a path with `~` replaced by the user's folder. Raises ValueError for one that names no file or folder."""
    _check_path(str(path))
    if variable := _SHELL.search(str(path)):
        raise ValueError(f"{variable[0]} is not replaced here, and would name a folder; write the path in full")
    return Path(os.path.expanduser(path))


def _check_path(text: str) -> None:
    """Raise ValueError for a local path that no file system takes, or of a user that is not known here."""
    if "\0" in text:
        raise ValueError("holds the character 0, which no path may")
    longest = max(text.split("/"), key=lambda part: len(os.fsencode(part)))
    if len(os.fsencode(longest)) > MAX_PART:
        raise ValueError(f"{longest[:20]}... has {len(os.fsencode(longest))} bytes; a name has at most {MAX_PART}")
    if text.startswith("~") and os.path.expanduser(text) == text:
        raise ValueError(f"there is no user {text.split('/')[0][1:]} here; write the path in full")


def _not_empty(path: object) -> object:
    if path == "":
        raise ValueError("is empty; name a path, or leave the field out")
    return path


PathField = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(user_path)]
"""A recipe's field that holds a local path."""


def file_name(name: str) -> str:
    """Return a name that becomes part of a file's name. Raises ValueError unless it stays inside the folder it is put in."""
    if not _is_file_name(name):
        raise ValueError(
            f"{name[:MAX_NAME]!r} becomes the name of a file: take at most {MAX_NAME} letters, digits, '.', '_', '+' and '-', "
            "and begin with a letter or digit"
        )
    return name


def _is_file_name(name: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.+-]*", name)) and len(name) <= MAX_NAME and len(os.fsencode(name)) <= MAX_BYTES


def as_file_name(text: str) -> str:
    """Return a name for the file of any text, such as a language of strangers' captions: itself where it can be one."""
    if _is_file_name(text):
        return text
    quoted = quote(text, safe="", errors="surrogatepass").replace(".", "%2E")
    if 0 < len(quoted) <= MAX_BYTES:
        return quoted
    return f"named-{hashlib.blake2b(text.encode(errors='surrogatepass'), digest_size=8).hexdigest()}"


FileName = Annotated[str, AfterValidator(file_name)]
"""A recipe's name that becomes part of a file's name."""
