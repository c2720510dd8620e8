"""One entry of the recipe's `evaluation` section."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from m3p.fields import Names
from m3p.paths import AddressField
from m3p.terminal import warn

ProtocolName = Literal["native", "m3p-compat", "folds5x1k", "full5k", "iglue", "xtd", "xm3600"]
"""Names of the evaluation protocols; what each is: retrieval/protocols.py."""
LABELS = {"captioned", "selected_on"}
"""Fields that stated what training had seen and what was selected, true or not."""


class EvaluationConfig(BaseModel):
    """Image retrieval on one source of pairs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: AddressField = Field(description="Folder of shards with captions.")
    languages: Names | None = Field(None, description="Query languages; every language of the source if left out.")
    rerank: int = Field(
        0,
        ge=0,
        description="Best candidates of the dual encoder that the cross-encoder scores again; 0: none, all pairs are scored by "
        "the dual encoder, or by the cross-encoder where no task trains the dual one.",
    )
    dual_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="With the cross-encoder: the dual encoder's cosine, times this, is added to its logit.",
    )
    centre: AddressField | None = Field(
        None,
        description="Folder of shards with captions in the query languages, as a rule those of training: each query of the dual "
        "encoder is moved by the mean of 128 captions of its language there. Their pictures are not looked at.",
    )
    protocol: ProtocolName = Field(
        "native",
        description="Which pictures and captions are the pool, and how is counted: native takes all as they are.",
    )
    caption_source: str | None = Field(None, description="Who wrote the captions; stands beside every figure.")
    seen_in_training: bool = Field(
        False, description="Allow pictures that training sees too, to measure what was learnt by heart."
    )
    batch_size: int = Field(64, ge=1, description="Pictures, captions or pairs that are forwarded at once.")

    @model_validator(mode="before")
    @classmethod
    def _without_labels(cls, given: Any) -> Any:
        """Leave out fields of earlier versions that a run's record tells better, and say so."""
        if not isinstance(given, dict):
            return given
        for name in sorted(LABELS & given.keys()):
            warn(f"evaluation.*.{name} is not read any more: results say what the checkpoint's own record says")
        return {name: value for name, value in given.items() if name not in LABELS}
