"""A real Slurm of two nodes for the tests of this folder; cluster.sh makes it and ends it."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import SCRIPT, Cluster


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "a throw-away Slurm needs root"
    missing = [
        name for name in ("slurmctld", "slurmd", "sbatch", "munged", "ip", "pkill") if shutil.which(name) is None
    ]
    if missing:
        return f"{', '.join(missing)} not there: run `tests/slurm/cluster.sh install`"
    if subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False).returncode != 0:
        return "this machine lets nobody make namespaces"
    return None


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start the cluster once; without the means for it, skip, but fail where CI=true says that they must be there."""
    reason = _why_not()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no Slurm: {reason}")
    folder = tmp_path_factory.mktemp("cluster")
    process = subprocess.Popen(
        [str(SCRIPT), "fg", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "ready", "the cluster does not start, see above"
        yield Cluster(folder)
    finally:
        process.stdin.close()
        process.wait(timeout=20)
