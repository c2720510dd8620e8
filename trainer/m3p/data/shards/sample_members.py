"""The files of one sample: which sample a member of a tar belongs to, and the members of one that was cut out."""

from m3p.data.shards.tar import TarError, walk
from m3p.errors import BadSample


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and extension at the first dot of its base name, as webdataset does.

    Returns None for names that belong to no sample: no dot, or a hidden file such as macOS's "._0001.jpg".
    """
    start = name.rfind("/") + 1
    dot = name.find(".", start)
    if dot <= start or dot == len(name) - 1:  # not found: -1
        return None
    return name[:dot], name[dot + 1 :].lower()


def members(span: bytes) -> dict[str, bytes]:
    """Parse the bytes of one sample, as cut out by its index, into {"jpg": ..., "json": ...}.

    Raises BadSample where they are not the whole, well-formed members of one sample.
    """
    found: dict[str, bytes] = {}
    sample = None
    try:
        files = [(m.name, span[m.data : m.data + m.size]) for m in walk(span, whole=False)]
    except TarError as error:
        raise BadSample(f"broken tar: {error}") from None
    for name, content in files:
        parts = split_name(name)
        if parts is None:
            continue
        key, extension = parts
        if sample is not None and key != sample:
            raise BadSample(f"members of two samples, {sample!r} and {key!r}: the index is not of this tar")
        if extension in found:
            raise BadSample(f"two members named {name!r}")
        sample = key
        found[extension] = content
    if not found:
        raise BadSample("no members")
    return found
