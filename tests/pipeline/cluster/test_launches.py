"""Launch files: damaged ones, and the ones that have ended."""

from pathlib import Path

import pytest

from pipeline.cluster import launches
from pipeline.cluster.launches import LaunchTerms
from pipeline.common.errors import UserError
from tests.support.launch_tasks import set_home, tasks_of


@pytest.fixture
def tasks(monkeypatch, tmp_path, experiment):
    """Three seeds of plain-20 and resnet-20."""
    return tasks_of(experiment, set_home(monkeypatch, tmp_path))


@pytest.mark.parametrize(
    "text", ['{"id": "x', "[]", "{}", "\xff", '{"id": 1, "terms": {}, "tasks": [], "manifests": []}']
)
def test_a_damaged_launch_file_is_reported_and_the_others_are_read(tasks, text):
    damaged, intact = (launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks)) for _ in range(2))
    path = launches.launches_folder() / f"{damaged.id}.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        launches.read_launch(damaged.id)
    assert str(caught.value) == (
        f"cannot read the launch file {path}: it is damaged or was written by another version; move it away and"
        " launch its experiments again"
    )
    reported = []
    assert [one.id for one in launches.unfinished_launches(reported.append)] == [intact.id]
    assert reported == [f"Skipped: {caught.value}"]


def test_a_launch_file_is_read_as_written(tasks):
    launch = launches.create_launch("w", Path("code"), LaunchTerms(4, 1.5, 2), tuple(tasks))
    assert launches.read_launch(launch.id) == launch
    assert list(launch.to_dict()) == ["id", "words", "by", "created", "code", "terms", "manifests", "tasks"]
    assert len(launch.to_dict()["manifests"]) == len({id(task.manifest) for task in tasks})


def test_a_missing_launch_is_an_error_that_names_the_folder(tasks):
    with pytest.raises(
        UserError, match=f"launch 2026 not found in {launches.launches_folder()}; list launches with"
    ):
        launches.read_launch("2026")


def test_ended_launches_are_not_unfinished_and_hours_are_kept(tasks):
    first, second = (launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks)) for _ in range(2))
    launches.mark_ended(first.id)
    launches.record_hours(second.id, 1.25)
    assert launches.launch_ids() == [first.id, second.id]
    assert [one.id for one in launches.unfinished_launches()] == [second.id]
    assert (launches.hours_used(first.id), launches.hours_used(second.id)) == (0.0, 1.25)
