"""Files of an exported folder for other libraries: the tokenizer of `transformers`, modules of `sentence-transformers`."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from m3p.data.tokenizer import Tokenizer
from m3p.data.tokenizer_json import convert_sentencepiece
from m3p.model.heads import EmbeddingHead
from m3p.vocabulary import SENTENCEPIECE_FILE, TOKENIZER_FILE, read_tokenizer_json, row_order
from m3p.wordpiece import VOCAB_FILE


def write_tokenizer(tokenizer: Tokenizer, max_tokens: int, output: Path) -> None:
    """Write what AutoTokenizer reads; it then cuts texts to `max_tokens`, if asked to cut. Raises UserError.

    The class is the general one, which takes tokenizer.json as it is: that of XLM-R would build its own from the pieces.
    """
    if tokenizer.path.name == SENTENCEPIECE_FILE:
        _write_json(output / TOKENIZER_FILE, convert_sentencepiece(tokenizer.path, tokenizer.by_word))
        shutil.copyfile(tokenizer.path, output / SENTENCEPIECE_FILE)
    elif tokenizer.path.name == VOCAB_FILE or row_order(tokenizer.path.parent) is not None:
        _write_json(output / TOKENIZER_FILE, read_tokenizer_json(tokenizer.path))
    else:
        shutil.copyfile(tokenizer.path, output / TOKENIZER_FILE)
    begin, pad, end, unknown, mask = tokenizer.pieces.specials
    specials = {
        "bos_token": begin,
        "eos_token": end,
        "unk_token": unknown,
        "sep_token": end,
        "pad_token": pad,
        "cls_token": begin,
        "mask_token": mask,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **specials,
    }
    _write_json(output / "tokenizer_config.json", config)
    _write_json(output / "special_tokens_map.json", specials)


def write_sentence_transformers(head: EmbeddingHead, max_tokens: int, output: Path) -> None:
    """Write what SentenceTransformer reads beside the encoder, so that its embeddings of texts lie in the space of our pictures.

    `max_tokens`: texts are cut there, as in training. Its modules: encoder, pooling, projection, unit length.
    """
    projection, width = head.text_projection.weight.shape
    # With a centre c: W (x / |x| + c), as a Dense layer with a bias behind a first scaling to unit length.
    scaled = ("Normalize",) if head.centre is not None else ()
    names = ("Transformer", "Pooling", *scaled, "Dense", "Normalize")
    paths = ("", *(f"{number}_{name}" for number, name in enumerate(names) if number))
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    for path in paths[1:]:
        (output / path).mkdir()
    _write_json(output / "modules.json", modules)
    _write_json(output / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    _write_json(output / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": head.pooling == "first",
        "pooling_mode_mean_tokens": head.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    _write_json(output / "1_Pooling" / "config.json", pooling)
    identity = "torch.nn.modules.linear.Identity"
    weights = {"linear.weight": head.text_projection.weight.detach().cpu().contiguous()}
    if head.centre is not None:
        weights["linear.bias"] = weights["linear.weight"] @ head.centre.detach().cpu()
    dense = {
        "in_features": width,
        "out_features": projection,
        "bias": "linear.bias" in weights,
        "activation_function": identity,
    }
    for path, name in zip(paths, names, strict=True):
        if name == "Normalize":
            _write_json(output / path / "config.json", {})
        elif name == "Dense":
            _write_json(output / path / "config.json", dense)
            save_file(weights, output / path / "model.safetensors", {"format": "pt"})


def open_to_group(output: Path) -> None:
    """Let everyone read the files of `output`: safetensors writes for the owner alone."""
    for path in output.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
