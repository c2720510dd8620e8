from m3p.retrieval.table import write_tensorboard
from tests.retrieval.results import evaluation, printed


def test_table_shows_everything_in_eighty_columns() -> None:
    result = evaluation()
    text = printed(result)
    assert "…" not in text
    german = result.languages["de"]
    row = next(line.split() for line in text.splitlines() if line.startswith("de"))
    low, high = german.interval
    assert row[7:] == [f"{german.mean_recall:.1f}", f"{low:.1f}–{high:.1f}", f"{german.chance:.1f}", "40"]
    assert result.fairness is not None
    assert f"{result.fairness.best} less {result.fairness.worst}: {result.fairness.gap:.1f} points" in " ".join(
        text.split()
    )
    for part in ("run-1, step 7", "40 pictures", "never captioned", "all languages", "protocol native", "en *"):
        assert part in text


def test_tensorboard_gets_every_language() -> None:
    written: dict[str, float] = {}

    class Writer:
        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            assert global_step == 7
            written[tag] = scalar_value

    result = evaluation()
    write_tensorboard(Writer(), result, 7)
    assert len(written) == 3 * 7 + 2
    assert written["retrieval/dev/dual/cs/mean_recall"] == result.languages["cs"].mean_recall
    assert written["retrieval/dev/dual/de/text_to_image_R@5"] == result.languages["de"].text_to_image["R@5"]
