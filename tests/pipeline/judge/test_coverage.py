"""Test which printed rows have a claim: by value and place, by reference, or listed with a reason."""

import pytest

from pipeline.common.errors import UserError
from pipeline.declare.load import load_all, load_all_printed
from pipeline.declare.printed import PrintedFile
from pipeline.judge.coverage import is_at, places, printed_rows


def rows(experiment, **content):
    """The rows of a printed file of the toy paper, by name."""
    printed = {"toy": PrintedFile.model_validate(content)}
    return {row.name: row for row in printed_rows([experiment], printed)}


ERROR = "CIFAR-10 test, error %"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Table 6", {"table 6"}),
        ("Tables 4 and 5", {"table 4", "table 5"}),
        ("Tables 2, 3 and 5", {"table 2", "table 3", "table 5"}),
        ("Tables 1 to 3", {"table 1", "table 2", "table 3"}),
        ("section 4.2; Tables 3 and 4", {"section 4.2", "table 3", "table 4"}),
        ("Figure 9 / section III-B", {"figure 9", "section III-B"}),
        ("Table 1, abstract", {"table 1"}),
        ("the winners' chart", {"the winners' chart"}),
    ],
)
def test_places_of_a_source(text, found):
    assert places(text) == found


def test_a_section_contains_its_subsections_and_no_other():
    assert is_at("section 4.1", "section 4")
    assert is_at("figure 3(a)", "Figure 3")
    assert not is_at("section 4", "section 4.1")
    assert not is_at("table 11", "Table 1")


def test_a_result_is_found_by_value_and_place(experiment):
    found = rows(experiment, results={"Figure 6": {ERROR: {"plain-20": 9.5, "plain-44": 9.7}}})
    assert found["Figure 6: plain-20"].claims == ("toy/depth/error",)
    assert found["Figure 6: plain-44"].is_missing
    assert rows(experiment, results={"Table 6": {ERROR: {"plain-20": 9.5}}})["Table 6: plain-20"].is_missing


def test_a_claim_counts_for_one_result_of_a_place(experiment):
    found = rows(experiment, results={"Figure 6": {ERROR: {"a": 9.5, "b": 9.5}}})
    assert sorted(row.is_missing for row in found.values()) == [False, True]


def test_as_many_results_as_possible_are_claimed(declare):
    """9.5 at Figure 6 fits both claims, 9.5 at Table 1 only the second: both results have one."""
    second = "  - {id: again, kind: metric, says: x, of: plain-32, metric: test/top1_error_pct, claimed: 9.5,\n"
    second += '     margin: 0.5, source: "Table 1 and Figure 6"}\nclaims_end'
    experiment = declare("departures:", second.replace("claims_end", "departures:"))
    found = rows(experiment, results={"Figure 6": {ERROR: {"a": 9.5}}, "Table 1": {ERROR: {"b": 9.5}}})
    assert not any(row.is_missing for row in found.values())
    assert found["Table 1: b"].claims == ("toy/depth/again",)


def test_of_claims_that_fit_the_one_with_the_result_s_words_is_found(declare):
    second = "  - {id: deep, kind: metric, says: x, of: plain-32, metric: test/top1_error_pct, claimed: 9.5,\n"
    experiment = declare("departures:", f'{second}     margin: 0.5, source: "Figure 6"}}\ndepartures:')
    for names in (("plain-20", "plain-32"), ("plain-32", "plain-20")):
        found = rows(experiment, results={"Figure 6": {ERROR: dict.fromkeys(names, 9.5)}})
        assert found["Figure 6: plain-20"].claims == ("toy/depth/error",)
        assert found["Figure 6: plain-32"].claims == ("toy/depth/deep",)


COMPARED = (
    "printed: {Table 2: {plain_mb: 240, small_mb: 60.5}}\nclaims:\n"
    "  - {id: smaller, says: Four times smaller, source: Table 2, metric: printed/plain_mb,"
    " over_metric: printed/small_mb, claimed: 4, margin: 0.5}"
)


@pytest.mark.parametrize(("measured", "claimed"), [("size, MB", True), ("test error %", False)])
def test_a_comparison_of_printed_values_is_no_claim_about_an_error(declare, measured, claimed):
    found = rows(declare("claims:", COMPARED), results={"Table 2": {measured: {"small": 60.5}}})
    assert bool(found["Table 2: small"].claims) is claimed


def test_a_printed_text_may_have_thousands_separators(experiment):
    found = rows(
        experiment, results={"Table 6": {"parameters": {"plain-20": "270,000 in all", "b": "about 1,202"}}}
    )
    assert found["Table 6: plain-20"].claims == ("toy/depth/size",)
    assert found["Table 6: b"].is_missing


@pytest.mark.parametrize(
    ("measured", "value", "claimed"),
    [
        ("parameters, M", 0.27, True),  # claimed as 270,000
        ("parameters, M", 0.28, False),
        (ERROR, 0.27, False),  # an error is no number of parameters
    ],
)
def test_units_are_compared(experiment, measured, value, claimed):
    row = rows(experiment, results={"Table 6": {measured: {"plain-20": value}}})["Table 6: plain-20"]
    assert bool(row.claims) is claimed


@pytest.mark.parametrize(("value", "claimed"), [(4.8, True), (7.0, False)])
def test_an_open_claim_states_its_percentages_only(declare, value, claimed):
    open_claim = '  - {id: served, kind: open, says: "7 networks have an error of 4.8 %", source: "Figure 6", '
    experiment = declare("departures:", f"{open_claim}reason: no-labels, why: secret}}\ndepartures:")
    row = rows(experiment, results={"Figure 6": {ERROR: {"seven": value}}})["Figure 6: seven"]
    assert row.claims == (("toy/depth/served",) if claimed else ())


def test_a_claim_that_a_result_names_is_found_for_no_other_of_its_place(experiment):
    named = {"value": 9.5, "claims": ["toy/depth/error"]}
    results = {"Figure 6": {ERROR: {"plain-44": 9.5, "plain-20": named}}}
    found = rows(experiment, results=results)
    assert found["Figure 6: plain-20"].claims == ("toy/depth/error",)
    assert found["Figure 6: plain-44"].is_missing
    found = rows(
        experiment, results={"Table 1": {ERROR: {"plain-20": named}}, "Figure 6": {ERROR: {"plain-44": 9.5}}}
    )
    assert found["Figure 6: plain-44"].claims == ("toy/depth/error",)


def test_accuracy_may_be_claimed_as_error_and_top_1_is_not_top_5(experiment):
    results = {"Figure 6": {"CIFAR-10 test, top-1 accuracy %": {"plain-20": 90.5}}}
    assert rows(experiment, results=results)["Figure 6: plain-20"].claims == ("toy/depth/error",)
    results = {"Figure 6": {"CIFAR-10 test, top-5 error %": {"plain-20": 9.5}}}
    assert rows(experiment, results=results)["Figure 6: plain-20"].is_missing


def test_a_printed_bound_is_found(experiment):
    row = rows(experiment, results={"Figure 6": {ERROR: {"plain-32": "fail (>9)"}}})["Figure 6: plain-32"]
    assert row.claims == ("toy/depth/stuck",)


def test_statements_name_their_claims(experiment):
    found = rows(
        experiment,
        relations={"deeper": {"says": "x", "source": "Figure 6", "claims": ["toy/depth/deeper"]}},
        lecture={"decay": {"says": "y", "claims": ["toy/depth/decay"]}, "other": {"says": "z"}},
    )
    assert [row.name for row in found.values() if row.is_missing] == ["other"]


def test_unknown_claims_name_the_nearest_one(experiment):
    with pytest.raises(UserError) as caught:
        rows(experiment, lecture={"decay": {"says": "y", "claims": ["toy/depth/decai"]}})
    assert str(caught.value) == (
        "toy/printed.yaml: lecture.decay: unknown claim 'toy/depth/decai'; did you mean 'toy/depth/decay'?"
    )


RESULTS = {"Table 9": {ERROR: {"a": 1.5, "b": 2.5}}}


def listed(declare, *names):
    reasons = f"not_claimed:\n  - {{rows: [{', '.join(names)}], why: only cited}}\ndepartures:"
    return declare("departures:", reasons)


@pytest.mark.parametrize(("names", "missing"), [(["Table 9"], []), (['"Table 9: a"'], ["Table 9: b"])])
def test_rows_listed_with_a_reason_are_not_missing(declare, names, missing):
    found = rows(listed(declare, *names), results=RESULTS)
    assert [row.name for row in found.values() if row.is_missing] == missing
    assert {row.why for row in found.values() if not row.is_missing} == {"only cited"}


def test_reasons_for_rows_that_do_not_exist_are_refused(declare):
    with pytest.raises(
        UserError, match=r"^toy: not_claimed: no row 'Table 8' in printed.yaml; did you mean 'Table"
    ):
        rows(listed(declare, "Table 8"), results=RESULTS)


def test_reasons_for_rows_that_have_a_claim_are_refused(declare):
    with pytest.raises(UserError, match=r"^toy: not_claimed: 'Figure 6' has a claim; remove it$"):
        rows(listed(declare, "Figure 6"), results={"Figure 6": {ERROR: {"plain-20": 9.5}}})


def test_every_printed_row_has_a_claim_or_a_reason():
    printed = load_all_printed()
    folders = {experiment.folder for experiment in load_all()}
    assert set(printed) <= folders
    own = printed_rows(load_all(), printed)
    counts = {kind: sum(row.kind == kind for row in own) for kind in ("results", "relations", "lecture")}
    # The papers and the lecture, counted when the lists were made: a row that is removed is noticed here.
    assert counts == {"results": 701, "relations": 154, "lecture": 106}
    assert [f"{row.paper} {row.kind}: {row.name}" for row in own if row.is_missing] == []
