"""Run by Python of an environment with the real MTEB: a local task of pictures and captions, each way, as MTEB's own are made.

python mteb_task.py EXPORT SHARDS      prints {"en": {"t2i": {"ndcg_at_10", "hit_rate_at_1", "recall_at_5"}, "i2t": {...}}, ...}
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from PIL import Image

from m3p.recipe.evaluation import EvaluationConfig
from m3p.retrieval.mteb_encoder import MtebEncoder
from m3p.retrieval.pictures import Pictures, load_pictures, picture_bytes
from m3p.runs import open_run

LANGUAGES = {"en": ["eng-Latn"], "de": ["deu-Latn"], "ja": ["jpn-Jpan"]}
KEPT = ("ndcg_at_10", "hit_rate_at_1", "recall_at_5")


def metadata(name: str, category: str) -> TaskMetadata:
    return TaskMetadata(
        name=name, description="A local task.", reference=None, dataset={"path": "local", "revision": "1"},
        type="Any2AnyMultilingualRetrieval", category=category, eval_splits=["test"], eval_langs=LANGUAGES,
        main_score="ndcg_at_10", date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None,
        dialect=None, modalities=["text", "image"], sample_creation=None, bibtex_citation=None,
    )  # fmt: skip


class Local(AbsTaskRetrieval):  # type: ignore[misc]  # MTEB is not installed here
    pictures: Pictures

    def load_data(self, *given: Any, **named: Any) -> None:
        self.dataset = {language: {"test": self.split(language)} for language in LANGUAGES}
        self.data_loaded = True

    def split(self, language: str) -> RetrievalSplitData:
        pool = self.pictures.pool
        images = [
            Image.open(io.BytesIO(picture_bytes(self.pictures, n))).convert("RGB") for n in range(len(pool.images))
        ]
        shown = Dataset.from_dict({"id": [f"p{n}" for n in range(len(images))], "image": images})
        texts = [caption.text for caption in pool.captions[language]]
        said = Dataset.from_dict({"id": [f"c{n}" for n in range(len(texts))], "text": texts})
        right = pool.right(language)
        if self.metadata.category == "t2i":
            answers = {f"c{c}": {f"p{n}": 1 for n in right[:, c].nonzero()[0].tolist()} for c in range(len(texts))}
            return RetrievalSplitData(queries=said, corpus=shown, relevant_docs=answers, top_ranked=None)
        answers = {f"p{n}": {f"c{c}": 1 for c in right[n].nonzero()[0].tolist()} for n in range(len(images))}
        return RetrievalSplitData(queries=shown, corpus=said, relevant_docs=answers, top_ranked=None)


class TextToImage(Local):
    metadata = metadata("LocalT2IRetrieval", "t2i")


class ImageToText(Local):
    metadata = metadata("LocalI2TRetrieval", "i2t")


def main() -> None:
    export, shards = Path(sys.argv[1]), Path(sys.argv[2])
    Local.pictures = load_pictures(open_run(export).recipe, "local", EvaluationConfig(path=str(shards)))
    found: dict[str, dict[str, dict[str, float]]] = {language: {} for language in LANGUAGES}
    for task in (TextToImage(), ImageToText()):
        results = mteb.evaluate(MtebEncoder(export), task, cache=None, show_progress_bar=False)
        for scores in results.task_results[0].scores["test"]:
            kept = {name: scores[name] for name in KEPT}
            found[scores["hf_subset"]][task.metadata.category] = kept
    print(json.dumps(found))


if __name__ == "__main__":
    main()
