"""M3P: multitask, multilingual, multimodal pre-training (arXiv 2006.02635).

    import m3p
    model = m3p.load("runs/demo")
    model.embed_texts(["a red circle"]) @ model.embed_pictures(["circle.png"]).T

The public names are `load`, what it returns, and `__version__`. Everything else may change from one version to the next.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3p.api import Model

__all__ = ["__version__", "load"]
__version__ = "0.2.0"


def load(path: str | Path, batch_size: int = 64) -> "Model":
    """Open a run folder, one of its checkpoints, or a folder that `m3p export` wrote; see `m3p.api.Model`. Raises UserError.

    torch is imported here, so that `import m3p` is fast.
    """
    from m3p import api

    return api.load(path, batch_size)
