from m3p.training.train import shown


def test_a_task_that_met_no_term_has_no_loss() -> None:
    assert shown({"a/x": 0.0, "a/y": 0.0, "b/x": 2.0}, {"a/x": 0, "a/y": 3, "b/x": 1}) == {"a/y": 0.0, "b/x": 2.0}
