"""Paths, URLs and names that come from a recipe: one rule each for what they may be, and how they are shown.

A password in a URL opens what it names, and is shown and stored nowhere.
"""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from m3p.errors import UserError

HIDDEN = "***"
MAX_NAME = 100
"""Characters of a name that becomes a file's or folder's."""
_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")
_SIGNATURE = re.compile(
    r"([?&][^=&\s]*(?:sig|signature|token|key|secret|credential|password)[^=&\s]*=)[^&\s]+", re.IGNORECASE
)
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class Address(str):
    """A path or URL as it may be shown and stored: without its password. `full` holds what opens it."""

    full: str

    def __new__(cls, text: str) -> "Address":
        """Take a path or URL as it is written in a recipe. `~` becomes the user's folder."""
        full = text if "://" in text else os.path.expanduser(text)
        found = super().__new__(cls, masked(full))
        found.full = getattr(text, "full", full)
        return found


AddressField = Annotated[str, AfterValidator(Address)]
"""A recipe's field that holds an address."""


def masked(text: str) -> str:
    """Return a text, such as an error's, with the passwords and signatures of the URLs in it replaced by `***`."""
    return _SIGNATURE.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1{HIDDEN}@", text))


def opened(address: str, field: str) -> str:
    """Return what opens `address`, with `${NAME}` replaced by the environment variable NAME. Raises UserError, naming `field`."""
    full: str = getattr(address, "full", address)
    if "://" not in full:
        return full
    if f":{HIDDEN}@" in full or f"={HIDDEN}" in full:
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
    """Return a path with `~` replaced by the user's folder."""
    return Path(os.path.expanduser(path))


PathField = Annotated[Path, AfterValidator(user_path)]
"""A recipe's field that holds a local path."""


def file_name(name: str) -> str:
    """Return a name that becomes part of a file's name. Raises ValueError unless it stays inside the folder it is put in."""
    if not re.fullmatch(r"\w[\w.+-]*", name) or len(name) > MAX_NAME:
        raise ValueError(
            f"{name[:MAX_NAME]!r} becomes the name of a file: take at most {MAX_NAME} letters, digits, '.', '_', '+' and '-', "
            "and begin with a letter or digit"
        )
    return name


FileName = Annotated[str, AfterValidator(file_name)]
"""A recipe's name that becomes part of a file's name."""
