"""The recipe's section `objectives.NAME.matching`: which mismatched pairs the task compares, and by which loss."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_NEGATIVES = 8
"""Most mismatched pairs of one true pair."""
Loss = Literal["bce", "softmax", "hinge"]


class MatchingConfig(BaseModel):
    """Mismatched pairs, and the loss over them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    negatives: Literal["random", "hard"] = Field(
        "random",
        description="random: with the next other pairs of the turn, whose pictures and captions are taken by turns. hard: with "
        "captions of the turn, drawn in proportion to exp(similarity / temperature) to the picture (ALBEF).",
    )
    negatives_per_pair: int = Field(1, ge=1, le=MAX_NEGATIVES, description="Mismatched pairs of each true pair.")
    loss: Loss = Field(
        "bce",
        description="bce: each pair is judged alone. softmax: the true pair among its group. hinge: a margin of 0.2 between the "
        "true pair and each mismatched one, on scores in 0..1 (UC2).",
    )
