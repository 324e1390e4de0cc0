"""Progress lines in a log file."""

from pipeline.cli import progress, terminal


def test_a_log_line_has_the_remaining_time(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "err", terminal.console(stderr=True))
    log = progress.LogProgress("writing shards", "images")
    for second, done in ((0, 0), (30, 300), (60, 4_500), (90, 5_000)):
        now[0] = second
        log.update(done, 9_000)
    assert [line.partition("/s, ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "14 min left",  # 8,700 at 10/s
        "60 s left",  # 4,500 at 75/s
        "72 s left",
    ]
