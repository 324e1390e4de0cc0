"""Results of published weights in files: which result replaces which."""

import json

import pytest

from pipeline.track.published_results import PublishedResult, load_results, result_key, save_result


@pytest.fixture
def result(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    about = ("resnet-50", "w.pth", "00", "", "val", "1-crop-224-of-256")
    return PublishedResult(*about, 50000, 24.0, 7.0, None, 0, "hardware", "commit", "today", manifest="ab")


def changed(result, **values):
    return PublishedResult(**(result.to_dict() | values))


def test_a_result_of_the_same_evaluation_replaces_the_older_one(result):
    for newer in (result, changed(result, top1=25.0, assumed="normalisation", class_order="numbers by value")):
        save_result(newer)
        assert load_results() == [newer]


@pytest.mark.parametrize(
    "values", [{"protocol": "10-crop-224-of-256"}, {"given": "--normalise 0.5/0.5"}, {"sha256": "01"}]
)
def test_a_result_by_other_options_is_kept_beside_it(result, values):
    save_result(result)
    save_result(changed(result, **values))
    assert len(load_results()) == 2


def test_a_result_of_an_older_version_has_the_same_key_and_is_replaced(result):
    later = ("normalisation", "class_order", "assumed", "given", "note", "skipped")
    older = {name: value for name, value in result.to_dict().items() if name not in later}
    assert result_key(older) == result_key(result.to_dict())
    path = save_result(result)
    path.write_text(json.dumps(older))
    assert load_results() == [result]
