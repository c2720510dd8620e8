"""The recipe's section `objectives.NAME.matching`: which mismatched pairs the task compares, and by which loss."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_NEGATIVES = 8
"""Most mismatched pairs of one true pair."""
Loss = Literal["bce", "softmax", "hinge"]


class MatchingConfig(BaseModel):
    """Mismatched pairs, and the loss over them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    negatives: Literal["random", "hard", "one_hard"] = Field(
        "random",
        description="random: with the next other pairs of the turn, whose pictures and captions are taken by turns. hard: with "
        "captions of the turn, drawn in proportion to exp(similarity / temperature) to the picture (ALBEF). one_hard: one of "
        "them so, the others with equal chances, as in IGLUE (which takes one of its two random halves as a picture).",
    )
    negatives_per_pair: int = Field(1, ge=1, le=MAX_NEGATIVES, description="Mismatched pairs of each true pair.")
    loss: Loss = Field(
        "bce",
        description="bce: each pair is judged alone. softmax: the true pair among its group. hinge: a margin of 0.2 between the "
        "true pair and each mismatched one, on scores in 0..1 (UC2).",
    )

    @property
    def are_drawn(self) -> bool:
        """Whether training draws mismatched pairs by the features of the turn, and not the loader by position."""
        return self.negatives != "random"

    @property
    def hard_per_pair(self) -> int:
        """How many mismatched pairs of each true pair are drawn by similarity."""
        return {"random": 0, "hard": self.negatives_per_pair, "one_hard": 1}[self.negatives]

    @model_validator(mode="after")
    def _some_are_random(self) -> "MatchingConfig":
        if self.negatives == "one_hard" and self.negatives_per_pair == 1:
            raise ValueError(
                "negatives = one_hard: of one mismatched pair none is left to be random; set negatives_per_pair to 2 or more "
                "(IGLUE: 3), or negatives: hard"
            )
        return self
