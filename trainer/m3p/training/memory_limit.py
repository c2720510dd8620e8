"""Memory to spare on this node, for this process: what the system has, and what a limit leaves, as Slurm or a container sets it.

Limits are those of control groups (the kernel's admin-guide/cgroup-v2.rst, and cgroup-v1/memory.rst of older systems):
a folder for each group, in that of the group around it. Files that the kernel keeps in memory count there, and are given
up when memory runs short.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil

NEW = ("memory.max", "memory.current", "inactive_file", "active_file")
OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file")
"""Files that hold the limit and the use of a group, in bytes, and the lines of its memory.stat with its files."""


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process can still take, without swapping and without meeting a limit.

    `root` is where /proc and /sys are.
    """
    room = [psutil.virtual_memory().available]
    for group in _groups(root):
        for limit, used, *files in (NEW, OLD):
            bound = _read(group / limit)
            if bound.isdecimal():  # "max": none
                held = dict(line.split() for line in _read(group / "memory.stat").splitlines())
                room.append(int(bound) - int(_read(group / used)) + sum(int(held.get(name, 0)) for name in files))
    return max(0, min(room))


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of the groups that hold this process and count memory, the innermost first."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            mount = root / "sys/fs/cgroup" / controllers
            inner = mount / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount))


def _read(path: Path) -> str:
    """Return what a file says; "" where there is none: in a container, groups outside it cannot be seen."""
    return path.read_text().strip() if path.is_file() else ""
