"""One entry of the recipe's `evaluation` section."""

from pydantic import BaseModel, ConfigDict, Field

from m3p.paths import AddressField


class EvaluationConfig(BaseModel):
    """Image retrieval on one source of pairs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: AddressField = Field(description="Folder of shards with captions.")
    languages: list[str] | None = Field(None, description="Query languages; every language of the source if left out.")
    captioned: list[str] = Field(
        ["en"], description="Languages whose captions were trained on; the others are averaged apart."
    )
    rerank: int = Field(
        0,
        ge=0,
        description="Best candidates of the dual encoder that the cross-encoder scores again; 0: dual encoder alone.",
    )
    caption_source: str = Field("human", description="Who wrote the captions; stands beside every figure.")
    selected_on: str | None = Field(
        None, description="Split on which settings were chosen; stands beside every figure."
    )
    batch_size: int = Field(64, ge=1, description="Pictures, captions or pairs that are forwarded at once.")
