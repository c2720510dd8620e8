"""The library faiss, which searches among vectors: an extra of the package, imported when it is needed."""

from typing import Any

from m3p.errors import UserError


def faiss_library() -> Any:
    """Return the module faiss. Raises UserError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f"an index of pictures needs the library faiss ({error}); install it with pip install 'm3p-trainer[search]', or "
            "pip install faiss-cpu"
        ) from error
    return faiss
