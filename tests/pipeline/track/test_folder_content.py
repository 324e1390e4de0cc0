"""What of a run's folder is sent: curves at a few hundred points, system metrics, tags."""

from pipeline.common.environment import user_name
from pipeline.track.folder_content import CURVE_POINTS, FolderContent, run_tags

DESCRIPTION = {
    "identity": "a1",
    "experiment": "resnet/imagenet",
    "scale": "paper",
    "variant": "resnet-34",
    "seed": 2,
    "declaration": "d1",
    "changes": {},
    "manifest": {"name": "imagenet", "sha256": "ab"},
    "recipe": {"train": {"steps": 10_000}, "data": {"test": ["10-crop-224-of-256", "1-crop-224-of-256"]}},
}


def content(steps, *, record=None, metric="train/loss", total=10_000):
    entries = [{"step": step, "time": float(step), "metrics": {metric: float(step)}} for step in steps]
    description = DESCRIPTION | {"recipe": {"train": {"steps": total}}}
    return FolderContent(description, record, entries, 0)


def steps_of(points):
    return [point.step for point in points]


def test_a_long_curve_has_a_few_hundred_points_evenly_spaced_with_the_last_one():
    found = steps_of(content(range(1, 10_001), record=object()).curve_points({}))
    assert len(found) == CURVE_POINTS + 1
    assert (found[0], found[1], found[-1]) == (1, 26, 10_000)  # 10,000 / 400 = 25 steps apart


def test_curves_sent_in_parts_have_the_same_points():
    whole = steps_of(content(range(1, 10_001), record=object()).curve_points({}))
    curves: dict[str, dict] = {}
    parts = [(1, 3000), (3000, 3010), (3010, 10_001)]
    found = [step for start, end in parts for step in steps_of(content(range(start, end)).curve_points(curves))]
    found += steps_of(content([], record=object()).curve_points(curves))  # the record comes after the last entry
    assert found == whole


def test_a_curve_of_few_points_is_sent_whole():
    steps = range(50, 10_001, 50)  # 200 reports, the default
    assert steps_of(content(steps).curve_points({})) == list(steps)


def test_metrics_of_different_intervals_are_thinned_apart():
    curves: dict[str, dict] = {}
    assert steps_of(content([1, 2, 3]).curve_points(curves)) == [1]
    assert steps_of(content([3], metric="test/top1_error_pct").curve_points(curves)) == [3]


def test_system_metrics_have_the_names_that_mlflow_s_pages_expect():
    sample = {"step": 0, "time": 2.0, "metrics": {"cpu_utilization_percentage": 90.0}}
    [point] = FolderContent(DESCRIPTION, None, [], 0, [sample]).system_points()
    assert (point.metric, point.value, point.milliseconds) == ("system/cpu_utilization_percentage", 90.0, 2000)


def test_the_tags_of_a_run_name_paper_data_protocol_user_and_source():
    tags = run_tags(DESCRIPTION)
    expected = {"paper": "resnet", "data": "imagenet", "protocol": "10-crop-224-of-256", "seed": "2"}
    assert {key: tags[f"repro.{key}"] for key in expected} == expected
    assert (tags["mlflow.source.name"], tags["mlflow.user"]) == ("repro", user_name())
    assert "repro.protocol" not in run_tags(DESCRIPTION | {"recipe": {}})
