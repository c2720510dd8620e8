"""Small tars for the tests of this folder."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np

Files = list[tuple[str, bytes]]


def write_tar(path: Path, files: Files, form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def pair(key: str, captions: object = None, **more: bytes) -> Files:
    record = json.dumps({"captions": {"en": ["a dog"]} if captions is None else captions}).encode()
    return [(f"{key}.jpg", b"picture"), (f"{key}.json", record), *((f"{key}.{e}", c) for e, c in more.items())]


def spans(tar: Path) -> list[bytes]:
    offsets = np.load(tar.with_suffix(".idx"), mmap_mode="r", allow_pickle=False)
    content = tar.read_bytes()
    return [content[start:end] for start, end in itertools.pairwise(offsets)]
