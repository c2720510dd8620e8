"""Pictures that records name: read from one folder only, regular files of bounded size only."""

import io
import os
import stat
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from m3p.errors import BadSample
from m3p.visual.decode import decode

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""PIL's name of a format to the extension in the shard. MPO is what some cameras call a JPEG."""
LARGEST_FILE = 512 * 2**20
"""Bytes of a picture's file."""
LARGEST = 10**9
"""Pixels of a picture: PIL has a bound of its own, below it."""


class PictureFolder:
    """The pictures of a folder.

    Args:
        folder: names are relative to it, and nothing outside of it is read.
        follow_links: whether links may lead out of it, as in the caches of other programs.
    """

    def __init__(self, folder: Path, follow_links: bool = False) -> None:
        self.folder, self._follow_links = folder, follow_links

    def read(self, *names: str) -> tuple[str, bytes]:
        """Return extension and bytes of the first picture of `names` that exists. Raises ValueError with what is wrong."""
        for name in names:
            path = self.folder / name
            try:
                self._check_place(path, name)
                content = _read_regular(path)
            except FileNotFoundError:
                continue
            except (OSError, RuntimeError, ValueError) as error:
                raise ValueError(f"image {name!r} cannot be used: {error}") from None
            return checked_extension(content, name), content
        looked = ", ".join(str(self.folder / name) for name in names)
        raise ValueError(f"image {names[0]!r} does not exist (looked for {looked})")

    def content(self, name: str) -> bytes:
        """Return the bytes of a file of the folder, whatever they are. Raises ValueError, OSError."""
        path = self.folder / name
        self._check_place(path, name)
        return _read_regular(path)

    def _check_place(self, path: Path, name: str) -> None:
        """Raise ValueError unless the path lies in the folder, and what it leads to as well."""
        folder = self.folder.absolute()  # which may have `..` of its own
        if not Path(os.path.normpath(folder / name)).is_relative_to(os.path.normpath(folder)):
            raise ValueError(
                f"it is outside of {self.folder}; the rule is a path in it: give the folder of the pictures with --images"
            )
        if not self._follow_links and not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(
                f"it is a link that leads out of {self.folder}, to {path.resolve()}: allow that with --follow-links"
            )


def _read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file. Raises ValueError for devices, pipes and what is too large; OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1) if status.st_size <= LARGEST_FILE else b""
    if status.st_size > LARGEST_FILE or len(content) > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
    return content


def checked_extension(content: bytes, name: str = "") -> str:
    """Return the extension of a picture that can be decoded to its end. Raises ValueError with what is wrong."""
    try:
        extension = image_extension(content)
        # At an eighth of its size if it is a JPEG, which still reads all of it.
        decode(content, size=1, max_pixels=LARGEST)
    except (OSError, RuntimeError, ValueError, Image.DecompressionBombError, BadSample) as error:
        raise ValueError(f"image {name!r} cannot be used: {error}") from None
    return extension


def image_extension(content: bytes) -> str:
    """Return the extension of a picture from its own header. Raises ValueError for formats that shards do not take."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            name = image.format
    except UnidentifiedImageError:  # whose own text names an address in memory
        name = "unknown"
    if name not in EXTENSIONS:
        raise ValueError(f"its format is {name}; the rule is JPEG, PNG or WebP")
    return EXTENSIONS[name]
