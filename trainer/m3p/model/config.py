"""The recipe's `model` section."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from m3p.fields import MAY_CHANGE
from m3p.model.encoder import EncoderShape
from m3p.paths import PathField


class ModelConfig(BaseModel):
    """Sizes, starting weights and regularisation of the network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizer: PathField | None = Field(
        None,
        json_schema_extra=MAY_CHANGE,
        description="Folder with sentencepiece.bpe.model, tokenizer.json or vocab.txt; the folder of `initialise` if left out.",
    )
    initialise: PathField | None = Field(
        None,
        description="A local `transformers` folder of an XLM-RoBERTa or BERT to start from; its sizes then replace `shape`.",
    )
    weights: PathField | None = Field(
        None,
        description="Fine-tuning: a run folder, one of its checkpoints, or an exported folder to start from; of equal sizes.",
    )
    shape: EncoderShape | None = Field(None, description="Sizes of an encoder trained from scratch.")
    layers: int | None = Field(None, ge=1, description="Keep this many of the first layers of `initialise`.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of hidden states.")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of attention weights.")
    recompute: bool = Field(
        False,
        description="Keep only the input of each layer and compute the rest again in the backward: less memory, about a "
        "third more work (arXiv 1604.06174).",
    )
    pooling: Literal["first", "mean"] = Field(
        "first", description="Contrastive pooling: `<s>`, or the mean of the slots."
    )
    projection: int | None = Field(None, ge=2, description="Size of the contrastive space; the width if left out.")
    picture_hidden: int = Field(
        0,
        ge=0,
        description="Contrastive head: hidden units of a residual layer on pooled pictures, which starts as nothing; 0: none.",
    )
    picture_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Contrastive head: dropout of pooled pictures, and of what the residual layer adds.",
    )
    text_centre: bool = Field(
        False,
        description="Contrastive head: texts are scaled to unit length, and the mean of 1,024 captions of training is taken away "
        "before their projection: mean-pooled states share one large direction. Measured before the first step, then fixed.",
    )
    temperature: float = Field(0.07, gt=0.01, le=1, description="Contrastive temperature at the start.")
    learn_temperature: bool = Field(True, description="Train the temperature, or keep it.")
    freeze: list[Literal["words", "positions", "encoder", "text", "text_projection", "visual", "heads"]] = Field(
        [],
        description="Parts that keep their starting weights. text: embeddings and encoder; they then drop nothing, and no "
        "gradient is computed in them. text_projection: that of the contrastive head. visual: the visual embedder.",
    )
    freeze_layers: int = Field(
        0,
        ge=0,
        description="This many of the lowest encoder layers keep their starting weights; with freeze: [encoder] all do.",
    )
    remember_texts: bool = Field(
        False,
        description="With freeze: [text]: encode each text once in training, alone, and keep its states in memory (1 GiB at "
        "most). For data of some 100,000 captions; not with ZeRO 3.",
    )
    encode_pictures: bool = Field(
        True,
        description="Whether a picture's tokens pass through the encoder. false: two towers; the contrastive head pools what "
        "the visual source gives, and only tasks on texts and pictures apart can be trained.",
    )

    @property
    def counts_what_is_frozen(self) -> bool:
        """Whether forecasts and MFU know what the frozen parts leave out: of a text encoder and its projection they do."""
        return not self.freeze_layers and set(self.freeze) <= {"text", "text_projection"}

    @model_validator(mode="after")
    def _one_start(self) -> "ModelConfig":
        if (self.initialise is None) == (self.shape is None):
            raise ValueError("give either `initialise` (a transformers folder) or `shape` (sizes), and not both")
        if self.initialise is None and self.tokenizer is None:
            raise ValueError("`tokenizer` is missing: name a folder with sentencepiece.bpe.model or tokenizer.json")
        if self.layers is not None and self.initialise is None:
            raise ValueError("`layers` cuts `initialise`; for a model from scratch set shape.layers")
        if not self.encode_pictures and self.pooling == "first":
            raise ValueError(
                "pooling = first: with encode_pictures: false a picture's `<s>` knows nothing of the picture; set pooling: mean"
            )
        if self.remember_texts and "text" not in self.freeze:
            raise ValueError("remember_texts: what an encoder in training says of a text changes; add text to freeze")
        if "text" in self.freeze and self.encode_pictures:
            raise ValueError(
                "freeze: [text] wants encode_pictures: false, since a picture's tokens would have to learn through the frozen "
                "encoder; to keep the encoder's weights with such pictures, freeze words, positions and encoder"
            )
        return self
