"""Of trainer/m3p/training/memory_limit.py: a job's own limit of memory counts, not what the whole node has."""

from pathlib import Path

import psutil
import pytest

from m3p.training.memory_limit import available_memory

NODE = psutil.virtual_memory().total


def group(folder: Path, **files: object) -> None:
    """Write the files of a group; `_` in a name stands for the point after `memory`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")


def process(root: Path, groups: str) -> None:
    """Say of which groups this process is."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)


def test_the_narrowest_limit_around_the_process_counts_and_files_in_memory_do_not(tmp_path: Path) -> None:
    process(tmp_path, "0::/slurm/job_7/step_0\n")
    slurm = tmp_path / "sys/fs/cgroup/slurm"
    group(slurm, memory_max=NODE, memory_current=0, memory_stat="inactive_file 0\nactive_file 0")
    stat = "anon 60000\nfile 40000\ninactive_file 10000\nactive_file 20000"
    group(slurm / "job_7", memory_max=100_000, memory_current=90_000, memory_stat=stat)
    group(slurm / "job_7/step_0", memory_max="max", memory_current=90_000, memory_stat=stat)
    assert available_memory(tmp_path) == 40_000
    group(slurm / "job_7", memory_current=150_000)
    assert available_memory(tmp_path) == 0


def test_limits_of_older_systems(tmp_path: Path) -> None:
    process(tmp_path, "8:pids:/job\n4:memory:/job\n1:name=systemd:/job\n0::/\n")
    stat = "inactive_file 1\nactive_file 1\ntotal_inactive_file 300\ntotal_active_file 30"
    memory = {"memory_limit_in_bytes": 5_000, "memory_usage_in_bytes": 3_000, "memory_stat": stat}
    group(tmp_path / "sys/fs/cgroup/memory/job", **memory)
    group(tmp_path / "sys/fs/cgroup/pids/job", **{**memory, "memory_limit_in_bytes": 1})
    assert available_memory(tmp_path) == 2_330


@pytest.mark.parametrize("groups", ["", "0::/outside/of/the/container\n"])
def test_without_a_limit_it_is_what_the_node_has(tmp_path: Path, groups: str) -> None:
    process(tmp_path, groups)
    assert NODE / 100 < available_memory(tmp_path) <= NODE


def test_this_machine() -> None:
    assert 0 < available_memory() <= NODE
