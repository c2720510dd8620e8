"""What one walk over a tar finds, in numbers and names."""

from collections import Counter
from dataclasses import dataclass, field

from m3p.visual.tower.store import StoredTower


@dataclass(frozen=True)
class TarIndex:
    """What one walk over a tar finds."""

    samples: int
    bytes: int
    """Size of the tar."""
    fingerprint: str
    """As `Fingerprint` gives it."""
    captions: Counter[str] = field(default_factory=Counter)
    """Samples that have a caption, by language."""
    region_features: int | None = None
    """Width of the region features, if any sample has them."""
    unnamed: int = 0
    """Samples whose captions name no language, such as those of a KEY.txt."""
    unusable: int = 0
    """Samples that training skips: without picture or stored features, without caption or text, or with unreadable regions."""
    stored_tower: StoredTower | None = None
    """Which tower made the stored tokens, if any sample has them."""
    without_picture: int = 0
    """Samples that have stored features, such as regions, and no picture."""
    layouts: Counter[str] = field(default_factory=Counter)
    """Samples by where their captions were found, in the words of records.py."""
    unread: Counter[str] = field(default_factory=Counter)
    """Samples that have a file, or a field of their JSON, of which nothing is read: by "KEY.cls", "the field url"."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Samples whose captions cannot be used, by the reason."""
    dotted: str = ""
    """The first file whose name has a dot before its ending, if there is one: all from there on counts as the ending."""
    followed: bool = False
    """Whether another tar stands behind its end, of which nothing is read."""
    placeholders: Counter[str] = field(default_factory=Counter)
    """How often a caption only says that there is none, by its first letters."""
    links: int = 0
    """Members that are links to other files, of which nothing is read."""
    side_captions: str = ""
    """Hash of the file of captions beside the tar, which count in place of those in it; "" without one."""
