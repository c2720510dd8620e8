import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from m3p.batch import Batch
from m3p.errors import UserError
from m3p.model.encoder import EncoderShape
from m3p.model.flops import NetworkSizes, Work
from m3p.packing import Packer
from m3p.training.watch.monitor import MIN_SAMPLES_TO_JUDGE, Monitor
from m3p.training.watch.seen import see
from m3p.training.watch.throughput import Throughput


def batch(samples: int, bad: list[str]) -> Batch:
    made = Packer(1).finish(samples)
    made.bad = bad
    made.counts = {"language/de": samples}
    return made


def saw(monitor: Monitor, objective: str, *batches: Batch) -> None:
    """Have the monitor see the micro-batches of a pass of one turn, on one rank."""
    monitor.saw([see([objective], [batches], None, last=True)])


def test_a_step_is_one_line_with_every_figure(tmp_path: Path, alone: None) -> None:
    monitor = Monitor(tmp_path, 0, 5, 0.5, main=True)
    saw(monitor, "multilingual_text", batch(3, []), batch(2, ["s/1: broken"]))
    monitor.step(1, {"multilingual_text/masked_words": 2.5}, 2.5, 0.1, 1.5)
    monitor.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    figures = json.loads(line)
    assert figures["losses"] == {"multilingual_text/masked_words": 2.5}
    assert {"step", "loss", "learning_rate", "gradient_norm", "samples_per_second"} < figures.keys()
    assert {"tokens_per_second", "data_wait_share", "seconds"} < figures.keys()
    assert figures["samples_per_second"] == pytest.approx(5 / figures["seconds"])
    assert (tmp_path / "bad_samples.txt").read_text() == "step 1: s/1: broken\n"


def test_pairs_that_training_added_count_as_tokens_and_operations(tmp_path: Path, alone: None) -> None:
    sizes = NetworkSizes(EncoderShape(layers=2, width=64, heads=2), 100, term_flops={"matching": 5.0})
    monitor = Monitor(tmp_path, 0, 5, 0.5, True, Throughput(sizes, torch.device("cpu"), torch.float32, 1, partly=False))
    saw(monitor, "image_caption", batch(3, []))
    work = Work(slots=70, squared_lengths=500, terms={"matching": 7})
    monitor.added(work)
    monitor.step(1, {}, 0.0, 0.1, 1.0)
    monitor.close()
    figures = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert figures["tokens_per_second"] * figures["seconds"] == pytest.approx(1 + 70), (
        "`<s>` of the batch, and the pairs"
    )
    assert figures["teraflops"] * figures["seconds"] * 1e12 == pytest.approx(sizes.training_flops(work))


def test_shares_of_languages_and_of_long_texts_are_written(tmp_path: Path, alone: None) -> None:
    monitor = Monitor(tmp_path, 0, 5, 0.5, main=True)
    made = batch(8, [])
    made.counts = {"language/de": 6, "language/en": 2, "text/windows": 3}
    saw(monitor, "multilingual_text", made)
    monitor.step(1, {}, 0.0, 0.1, 1.0)
    monitor.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shares = {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}
    assert shares["mix_multilingual_text/de"] == 0.75
    assert shares["texts_longer_than_max_tokens/multilingual_text"] == 0.375


def test_going_on_forgets_the_steps_that_are_done_again(tmp_path: Path, alone: None) -> None:
    lines = [json.dumps({"step": step}) for step in (1, 2, 3, 4)]
    for name in ("metrics.jsonl", "skipped.jsonl"):
        (tmp_path / name).write_text("\n".join(lines) + '\n{"step": 5, "lo')
    Monitor(tmp_path, 2, 5, 0.5, main=True).close()
    for name in ("metrics.jsonl", "skipped.jsonl"):
        assert (tmp_path / name).read_text() == '{"step": 1}\n{"step": 2}\n'


def test_going_on_drops_lines_that_are_no_figures(tmp_path: Path, alone: None) -> None:
    strange = [b"5", b"null", b'{"step": "1"}', b'{"loss": 1}', b"\xff\xfe", b'{"ste']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([b'{"step": 1}', *strange, b'{"step": 2}']))
    Monitor(tmp_path, 2, 5, 0.5, main=True).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_too_many_bad_samples_stop_the_run_and_are_named(tmp_path: Path, alone: None) -> None:
    monitor = Monitor(tmp_path, 0, 5, 0.01, main=True)
    bad = ["train/shard-000007.tar, sample 3: no picture"] * 3
    saw(monitor, "image_caption", batch(MIN_SAMPLES_TO_JUDGE, bad))
    with pytest.raises(UserError, match=r"3 of 200 samples are bad, more than data.max_bad_share = 0.01") as caught:
        monitor.step(1, {}, 0.0, 0.1, 1.0)
    assert "train/shard-000007.tar, sample 3: no picture" in str(caught.value)
    monitor.close()


def test_a_batch_without_samples_counts_nothing(tmp_path: Path, alone: None) -> None:
    monitor = Monitor(tmp_path, 0, 5, 0.01, main=True)
    saw(monitor, "image_caption", Packer(1).finish(0))
    monitor.step(1, {"x/y": float(torch.zeros(()))}, 0.0, 0.1, 1.0)
    monitor.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["tokens_per_second"] == 0


def test_bad_samples_come_by_rank_whatever_the_passes(tmp_path: Path, alone: None) -> None:
    monitor = Monitor(tmp_path, 0, 5, 0.5, main=True)
    for number in (1, 2):
        every = [batch(9, [f"rank {rank}, pass {number}"]) for rank in (0, 1)]
        monitor.saw([see(["image_caption"], [[one]], None, last=number == 2) for one in every])
    monitor.step(1, {}, 0.0, 0.1, 1.0)
    monitor.close()
    lines = (tmp_path / "bad_samples.txt").read_text().splitlines()
    assert lines == [f"step 1: rank {rank}, pass {number}" for rank in (0, 1) for number in (1, 2)]
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["samples_per_second"] > 0
