from typing import NoReturn

import pytest

from m3p.errors import UserError
from m3p.training import main


@pytest.mark.parametrize(("local_rank", "joined"), [("0", False), ("1", False), ("1", True)])
def test_a_rank_that_says_nothing_leaves_after_the_one_that_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], local_rank: str, joined: bool
) -> None:
    """A launcher ends all ranks as soon as one has left: before the first one has imported all, its message would be lost."""

    def fails(arguments: object) -> NoReturn:
        raise UserError("run.steps = 'many': a whole number")

    def leaves(code: int) -> NoReturn:
        raise SystemExit(code)

    waited: list[float] = []
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, local_rank)
    monkeypatch.setattr(main, "main", fails)
    monkeypatch.setattr("m3p.distributed.leave", leaves)
    monkeypatch.setattr("m3p.distributed.has_joined", lambda: joined)
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr("threading.excepthook", None)
    with pytest.raises(SystemExit, match="2"):
        main.run([])
    assert bool(capsys.readouterr().err) == (local_rank == "0")
    assert bool(waited) == (local_rank != "0" and not joined)
