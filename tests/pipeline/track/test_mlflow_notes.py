"""Notes on MLflow experiments: ours are updated, those of users stay."""

import pytest

from pipeline.track.mlflow_notes import MAX_NOTE_LENGTH, MAX_TAG_LENGTH, NOTE_TAG, is_ours, set_note, signed
from pipeline.track.mlflow_pages import publish_paper_note
from pipeline.track.mlflow_writer import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow 3.17's own
OLD = "# On Depth\n\nA & B 2015.\n\n- 1 claim reproduced"
NEW = "# On Depth\n\nA & B 2015.\n\n- 2 claims reproduced"


def noted(client, text=None):
    """Return the note of the experiment `resnet`, changed to `text` if it is given."""
    place = client.get_experiment_by_name("resnet").experiment_id
    if text is not None:
        client.set_experiment_tag(place, NOTE_TAG, text)
    return client.get_experiment(place).tags[NOTE_TAG]


def publish(text):
    publish_paper_note(Tracker(), "resnet", lambda _: text)


def test_our_note_is_updated_and_that_of_a_user_stays(client):
    publish(OLD)
    publish(NEW)
    assert noted(client).startswith(NEW)
    edited = noted(client, noted(client).replace("2 claims", "many claims"))
    publish(OLD)
    assert noted(client) == edited
    noted(client, "Ask Kim before you delete runs here.")
    publish(OLD)
    assert noted(client) == "Ask Kim before you delete runs here."
    noted(client, "")  # as after a click on delete
    publish(OLD)
    assert noted(client) == signed(OLD)


def test_a_note_that_is_the_same_is_not_sent_again(client, monkeypatch):
    publish(OLD)
    tracker, place = Tracker(), client.get_experiment_by_name("resnet").experiment_id
    monkeypatch.setattr(tracker.client, "set_experiment_tag", lambda *_: pytest.fail("sent"))
    set_note(tracker, place, OLD)


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ("", True),
        (OLD, True),  # of a version without hashes
        (signed(OLD), True),
        (signed(OLD) + "\n\nSeed 3 is odd.", False),
        ("Seed 3 is odd.\n\n" + signed(OLD), False),
        (signed(OLD).replace("1 claim", "2 claims"), False),
        (OLD.replace("A & B", "Kim"), False),
        ("# Our runs\n\nOn the new cluster.", False),
    ],
)
def test_only_notes_that_we_wrote_are_ours(note, expected):
    assert is_ours(note, NEW) is expected


def test_the_longest_note_fits_into_a_tag():
    assert len(signed("x" * MAX_NOTE_LENGTH)) == MAX_TAG_LENGTH
