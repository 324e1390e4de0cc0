"""Saved views: MLflow's format, no tag of a user overwritten, columns that exist."""

import base64
import json
import zlib
from pathlib import Path

import mlflow.server
import pytest
from mlflow.demo.generators import saved_views
from mlflow.utils.search_utils import SearchUtils
from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH

from pipeline.report.mlflow_rows import row_metrics, row_tags
from pipeline.track.mlflow_views import (
    KIND_TAG,
    LEADERBOARD,
    OVERVIEW,
    TRAINING,
    VERDICTS,
    VIEW_TAG,
    VIEWS,
    changed_tags,
    is_current,
    outdated_tags,
    pack_state,
    unpack_state,
    view_address,
    views_of,
)
from tests.support.leaderboard_rows import ROW


def test_a_state_is_packed_as_mlflow_packs_it():
    state = {"searchFilter": "tags.`x` = 'ü'", "selectedColumns": ["metrics.`a`"]}
    assert pack_state(state) == saved_views._compress_state(state)
    assert unpack_state(pack_state(state)) == state


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_view_is_saved_in_mlflow_s_form_and_fits_in_a_tag(view):
    text = changed_tags({})[f"{VIEW_TAG}repro-{view.name}"]
    saved = json.loads(text)
    state = json.loads(zlib.decompress(base64.b64decode(saved["state"].removeprefix("deflate;"))))
    assert (saved["name"], saved.keys()) == (view.name, {"name", "createdAt", "state"})
    assert state["searchFilter"] == view.filter
    assert state["selectedColumns"] == list(state["columnWidths"]) == state["columnOrder"]
    assert len(text) <= MAX_EXPERIMENT_TAG_VAL_LENGTH


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_mlflow_can_filter_and_sort_by_a_view(view):
    SearchUtils.parse_search_filter(view.filter)
    kind, key, ascending = SearchUtils.parse_order_by_for_search_runs(f"{view.order_by} ASC")
    assert (kind, ascending) == ("tag", True)
    assert key in row_tags(ROW)


@pytest.mark.parametrize("view", [LEADERBOARD, VERDICTS], ids=lambda view: view.name)
def test_every_column_of_a_view_of_networks_is_one_that_a_row_has(view):
    written = {f"metrics.`{key}`" for key in row_metrics(ROW)} | {f"tags.`{key}`" for key in row_tags(ROW)}
    assert view.columns.keys() <= written


def test_a_new_experiment_gets_the_kind_of_model_training_and_three_views():
    tags = changed_tags({})
    assert tags[KIND_TAG] == "custom_model_development"
    assert tags.keys() - {KIND_TAG} == {
        f"mlflow.sharedViewState.repro-{name}" for name in ("leaderboard", "training", "verdicts")
    }


def test_the_experiment_of_all_papers_has_no_view_of_training_since_it_has_no_runs_of_seeds():
    assert views_of(OVERVIEW) == (LEADERBOARD, VERDICTS)
    assert f"{VIEW_TAG}repro-training" not in changed_tags({}, views_of(OVERVIEW))
    assert views_of("resnet") == VIEWS


def test_only_views_of_ours_are_outdated():
    tags = {**changed_tags({}), f"{VIEW_TAG}training": "{}", f"{VIEW_TAG}repro-mine": "{}"}
    assert outdated_tags(tags, views_of(OVERVIEW)) == {f"{VIEW_TAG}repro-training"}
    assert outdated_tags(tags, views_of("resnet")) == set()


def test_nothing_is_set_again():
    assert changed_tags(changed_tags({})) == {}


@pytest.mark.parametrize("kind", ["finetuning", "genai_development", "custom_model_development"])
def test_a_kind_that_a_user_chose_is_kept(kind):
    assert KIND_TAG not in changed_tags({KIND_TAG: kind})


def test_an_inferred_kind_is_replaced():
    assert changed_tags({KIND_TAG: "genai_development_inferred"})[KIND_TAG] == "custom_model_development"


def test_views_of_users_are_not_changed():
    theirs = {f"{VIEW_TAG}0f3a": "{}", f"{VIEW_TAG}mine": "deflate;eJw="}
    assert not changed_tags(theirs).keys() & theirs.keys()


@pytest.mark.parametrize(
    "value",
    ["", "{", "[]", '{"name": "leaderboard"}', '{"name": "leaderboard", "state": "deflate;x"}', "deflate;eJw="],
)
def test_a_damaged_or_older_view_is_written_again(value):
    key = f"{VIEW_TAG}{LEADERBOARD.key}"
    assert changed_tags(changed_tags({}) | {key: value}).keys() == {key}


def test_a_view_of_another_version_is_not_current():
    state = pack_state(LEADERBOARD.state | {"groupBy": "x"})
    older = json.dumps({"name": "leaderboard", "createdAt": 1, "state": state})
    assert not is_current(LEADERBOARD, older)


def test_the_address_opens_a_view_in_the_mode_for_model_training():
    assert view_address("http://127.0.0.1:5000/", "3", TRAINING) == (
        "http://127.0.0.1:5000/#/experiments/3/runs?viewStateShareKey=repro-training&workflowType=machine_learning"
    )


def test_mlflow_s_pages_know_the_names_that_views_use():
    """The names are those of MLflow's JavaScript; another version may use others."""
    scripts = (Path(mlflow.server.__file__).parent / "js" / "build" / "static" / "js").glob("*.js")
    code = "".join(script.read_text(encoding="utf-8") for script in scripts)
    for name in ('"mlflow.sharedViewState."', '"viewStateShareKey"', '"mlflow.experimentKind"', "workflowType"):
        assert name in code
    for name in ('"custom_model_development"', '"machine_learning"', *LEADERBOARD.state):
        assert name in code
