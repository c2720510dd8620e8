"""One rank of test_contrastive_shared.py: `shared_ranks.py FOLDER` with a launcher's variables.

Writes this rank's loss of a turn, and the gradient of its pairs, for features below and at the ceiling of the scale.
"""

import sys
from pathlib import Path

# Else the folder of this file would come before the library.
sys.path[0] = str(Path(__file__).parents[3])

import torch  # noqa: E402

from m3p import distributed  # noqa: E402
from m3p.objectives.tasks import contrastive  # noqa: E402
from tests.objectives.tasks.test_contrastive_shared import PAIRS, SCALES, turn  # noqa: E402

contrastive.MAX_UNSHARED_PAIRS = 1


def main() -> None:
    ranks = distributed.start(60.0)
    # Of three ranks, the first has the pairs 0 to 13, the second 14 to 40 without the last's 20 to 25.
    last = torch.arange(20, 26)
    owners = (torch.arange(PAIRS) >= 14).long()
    owners[last] = 2
    own = (owners % ranks.world_size == ranks.rank).nonzero().flatten()
    found = {}
    for scale in SCALES:
        features, targets = turn(scale)
        loss, gradient = contrastive.Contrastive().loss_and_gradient(features, targets, own)
        found[scale] = loss, gradient
    torch.save(found, Path(sys.argv[1]) / f"{ranks.world_size}-{ranks.rank}.pt")
    distributed.finish()


if __name__ == "__main__":
    main()
