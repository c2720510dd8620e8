"""Hashes of content, by which a run knows its data, word lists and code again wherever they lie."""

import hashlib
import json
from pathlib import Path


def hash_bytes(content: bytes) -> str:
    """Return 16 hexadecimal digits that stand for `content`."""
    return hashlib.sha256(content).hexdigest()[:16]


def hash_folder(folder: Path) -> str:
    """Return a hash of the names and contents of all files in `folder`, in the order of their paths."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return hash_bytes(b"".join(path.name.encode() + path.read_bytes() for path in files))


def code_hash(folder: Path) -> str:
    """Return a hash of all Python files below a folder: names and content."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(json.dumps([str(path.relative_to(folder)), path.read_text(encoding="utf-8")]).encode())
    return digest.hexdigest()[:16]
