"""JSON files of an index: bounded, whole or absent, with a checksum that shows damage before anything is believed."""

import hashlib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from m3p.atomic import replacing
from m3p.errors import UserError

Content = TypeVar("Content", bound=BaseModel)
_DIGEST = 16
_HEAD = '{{"checksum": "{}", "content": '
_BLOCK = 1 << 20


def checksum(content: bytes) -> str:
    """Return blake2b of `content`, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=_DIGEST).hexdigest()


def file_checksum(path: Path) -> str:
    """Return the same of a file's content, read block by block. Raises OSError."""
    digest = hashlib.blake2b(digest_size=_DIGEST)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_checked(path: Path, content: BaseModel) -> None:
    """Write {"checksum": of the content's JSON, "content": ...}; a reader finds the old file or the new one."""
    body = content.model_dump_json().encode()
    with replacing(path) as aside:
        aside.write_bytes(_HEAD.format(checksum(body)).encode() + body + b"}\n")


def read_checked(path: Path, kind: type[Content], largest: int, way_out: str) -> Content:
    """Read what `write_checked` wrote, of at most `largest` bytes.

    Raises UserError where it is absent or damaged: put a copy back, or do as `way_out` says.
    """
    try:
        with path.open("rb") as file:
            whole = file.read(largest + 1)
        if len(whole) > largest:
            raise ValueError(f"it has more than {largest:,} bytes")
        first = len(_HEAD.format("0" * 2 * _DIGEST))
        head, body = whole[:first], whole[first:].removesuffix(b"}\n")
        if head != _HEAD.format(checksum(body)).encode():
            raise ValueError("its checksum is another: it is damaged, or was changed by hand")
        return kind.model_validate_json(body)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); put a copy back, or {way_out}") from error
