"""A small XLM-R folder, made by the libraries that make published ones: sentencepiece and `transformers`."""

from pathlib import Path

import sentencepiece
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

VOCABULARY = 400
"""Pieces, <unk>, <s> and </s> included."""
TEXTS = [
    "A dog on a red sofa looks at two cats under the table.",
    "Zwei Hunde laufen über den Strand und spielen mit einem Ball, den ein Kind ins Wasser wirft.",
    "Un chien court sur la plage; l'enfant a jeté sa balle à l'eau.",
    "Dva psi běží po pláži a hrají si s míčem.",
    "犬が公園で走っています。二匹の猫が木の下で眠っている。",
    "一只狗在红色沙发上，两只猫在桌子下面。",
    "Собака бежит по пляжу, а ребёнок бросает мяч в воду.",
    "كلب يركض على الشاطئ والطفل يرمي الكرة في الماء.",
    "½ ① ﬁne “quotes” — 1,234.5",
]


def make_xlmr_folder(folder: Path) -> Path:
    """Write config.json, model.safetensors and sentencepiece.bpe.model into `folder`, as facebook/xlm-roberta-base has them."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_prefix=str(folder / "sentencepiece.bpe"),
        model_type="unigram",
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.vocab").unlink()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model")).get_piece_size()
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=pieces + 2,  # <pad> in front and <mask> behind
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = XLMRobertaModel(config)
    for name, parameter in model.named_parameters():
        norm = name.endswith("LayerNorm.weight")
        torch.nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.25)
    model.save_pretrained(folder)
    return folder
