"""Test which records count: recipes, code, data, seeds, changes."""

import random
from dataclasses import replace

import pytest

from pipeline.judge.counting import RecordIndex, counted_records, records_of, unchanged_records
from pipeline.judge.ledger import ledger
from pipeline.plan import identity
from tests.support.ledgers import (
    DEEP,
    DERIVED,
    OF_PAIR,
    OF_SMALL,
    PLAIN,
    SIX_SEEDS,
    derived_records,
    fixed_measure,
    judge_by_id,
    outcomes,
)


def test_run_changed_by_set_never_counts(experiment, both):
    changed = both(experiment, changes={"train.lr": 0.05})
    assert outcomes(experiment, changed)["deeper"] == "cannot judge: not-run"
    found = judge_by_id(experiment, [*both(experiment), *changed])["deeper"]
    assert len(found.evidence.runs) == 10
    assert found.verdict == judge_by_id(experiment, both(experiment))["deeper"].verdict


def test_run_changed_to_another_variants_recipe_does_not_count(declare, seed_records):
    declared = declare("depth: 32}}", "depth: 20}, train: {lr: 0.05}}")  # plain-32 is plain-20 with another lr
    changed = seed_records(declared, "plain-20", DEEP, changes={"train.lr": 0.05})
    assert changed[0].declaration == seed_records(declared, "plain-32", DEEP)[0].declaration
    assert outcomes(declared, changed)["stuck"] == "cannot judge: not-run"


def test_run_of_an_old_declaration_does_not_count(declare, both):
    old = both(declare())
    changed = declare("momentum: 0.9", "momentum: 0.8")
    assert outcomes(changed, old)["error"] == "cannot judge: not-run"
    assert outcomes(changed, [*old, *both(changed)])["error"] == "reproduced"


@pytest.mark.parametrize("field", ["code", "manifest"])
def test_runs_of_different_code_or_data_are_not_mixed(experiment, seed_records, field):
    old = seed_records(experiment, "plain-20", [20.0, 20.1, 19.9], **{field: "old"})
    new = seed_records(experiment, "plain-20", PLAIN, **{field: "new"})
    (found,) = counted_records(experiment, "paper", [*old, *new]).values()
    assert [getattr(record, field) for record in found] == ["new"] * 5  # the group with the most seeds
    assert judge_by_id(experiment, [*old, *new])["error"].verdict.measured == pytest.approx(9.5)


def test_latest_of_two_groups_with_as_many_seeds_counts(experiment, seed_records):
    old = seed_records(experiment, "plain-20", PLAIN, code="old", finished="2026-01-01T00:00:00+00:00")
    new = seed_records(experiment, "plain-20", DEEP, code="new", finished="2026-01-02T00:00:00+00:00")
    for records in ([*old, *new], [*new, *old]):
        (found,) = counted_records(experiment, "paper", records).values()
        assert {record.code for record in found} == {"new"}


def test_runs_of_code_that_gives_the_same_numbers_count_together(experiment, seed_records, monkeypatch):
    monkeypatch.setattr(identity, "EQUIVALENT_CODE", {"newest": "old", "new": "old"})
    codes = ["old", "old", "new", "newest", "other"]
    records = [replace(row, code=code) for row, code in zip(seed_records(experiment, "plain-20", PLAIN), codes)]  # noqa: B905
    (found,) = counted_records(experiment, "paper", records).values()
    assert [record.code for record in found] == ["old", "old", "new", "newest"]


def test_first_run_of_a_seed_counts(experiment, record):
    first = record(experiment, "plain-20", 0, 9.0, finished="2026-01-01T00:00:00+00:00", hardware="machine 1")
    again = record(experiment, "plain-20", 0, 5.0, finished="2026-01-02T00:00:00+00:00", hardware="machine 2")
    (found,) = counted_records(experiment, "paper", [again, first]).values()
    assert [record.hardware for record in found] == ["machine 1"]


def test_undeclared_seeds_do_not_count_at_paper_scale(experiment, record):
    records = [record(experiment, "plain-20", seed, 9.5) for seed in range(7)]
    (found,) = counted_records(experiment, "paper", records).values()
    assert [record.seed for record in found] == [0, 1, 2, 3, 4]


def test_order_of_the_records_does_not_matter(experiment, both):
    records = both(experiment)
    expected = [entry.to_dict() for entry in ledger(experiment, records, fixed_measure)]
    for seed in range(5):
        random.Random(seed).shuffle(records)
        assert [entry.to_dict() for entry in ledger(experiment, records, fixed_measure)] == expected


def test_recipe_decides_not_the_experiment_it_was_run_for(declare, both):
    # a finished run is never trained again, so it must count wherever its recipe is declared
    declared = declare("  smoke:", "  again: {why: The same recipe.}\n  smoke:")
    records = both(declared, scale="again")
    found = judge_by_id(declared, records)["deeper"]
    assert (found.verdict.outcome, found.evidence.scale) == ("reproduced", "paper")
    other = [type(r)(**(r.to_dict() | {"experiment": "other/record", "variant": "elsewhere"})) for r in records]
    assert judge_by_id(declared, other)["deeper"].verdict == found.verdict


def test_runs_of_another_recipe_do_not_count(declare, both):
    other = both(declare("steps: 64000", "steps: 64001"))
    assert outcomes(declare(), other)["error"] == "cannot judge: not-run"


def test_large_seed_does_not_slow_down_derived_runs(declare):
    # a seed may be a date or a hash, and its records are read by all who share the tracking server
    declared = declare(*OF_PAIR, *SIX_SEEDS)
    records = derived_records(declared, "pair", [9.4, 9.5, 9.6])
    large = [replace(record, seed=seed, declaration="other") for record in records for seed in (20261123, 2**70)]
    assert judge_by_id(declared, [*large, *records])["error"].evidence.seeds == (0, 2, 4)


def test_derived_run_of_another_recipe_does_not_count(declare):
    other = derived_records(declare(*OF_SMALL, "density: 0.5", "density: 0.4"), "small", [9.5] * 5)
    declared = declare(*OF_SMALL)
    assert outcomes(declared, other)["error"] == "cannot judge: not-run"
    retrained = derived_records(declare(*OF_SMALL, "steps: 64000", "steps: 64001"), "small", [9.5] * 5)
    assert outcomes(declared, retrained)["error"] == "cannot judge: not-run"
    assert outcomes(declared, derived_records(declared, "small", [9.5] * 5))["error"] == "reproduced"


def test_derived_runs_of_undeclared_seeds_do_not_count_at_paper_scale(declare):
    declared = declare(*OF_SMALL)
    records = derived_records(declared, "small", [9.5] * 5 + [100.0] * 3, seeds=8)
    assert len(records) == 8
    assert judge_by_id(declared, records)["error"].evidence.seeds == (0, 1, 2, 3, 4)
    laptop = derived_records(declared, "small", [1.0] * 8, scale="laptop", seeds=8)
    assert len(counted_records(declared, "laptop", laptop)["small"]) == 8


OTHER_DATA = ("depth: 32}}", "depth: 20}, data: {name: cifar100}}")  # plain-32 is plain-20 on CIFAR-100
NAMES_ONE = ("why: Minutes.", "why: Minutes.\n    variants: [plain-20]")


def test_runs_of_a_smaller_scale_count_only_for_the_variant_it_names(declare, seed_records):
    declared = declare(*OTHER_DATA, *NAMES_ONE)
    records = seed_records(declared, "plain-20", PLAIN, scale="laptop")  # on digits, in place of both data sets
    assert list(counted_records(declared, "laptop", records)) == ["plain-20"]
    assert outcomes(declared, records)["deeper"] == "cannot judge: not-run"


def test_runs_count_for_each_variant_that_the_scale_does_not_leave_out(declare, seed_records):
    declared = declare(*OTHER_DATA)  # the scale names no variants: all of them run
    records = seed_records(declared, "plain-20", PLAIN, scale="laptop")
    assert list(counted_records(declared, "laptop", records)) == ["plain-20", "plain-32"]


def test_variant_with_its_own_recipe_counts_though_the_scale_leaves_it_out(declare, seed_records):
    declared = declare(*NAMES_ONE)  # as after `repro run --variant plain-32`
    records = seed_records(declared, "plain-32", DEEP, scale="laptop")
    assert list(counted_records(declared, "laptop", records)) == ["plain-32"]


def test_derived_run_of_a_left_out_variant_does_not_count(declare, seed_records):
    pair = "pair: {kind: ensemble, members: {plain-20: 2}}"
    of_other = DERIVED.replace(pair, f"{pair}\n  other: {{kind: ensemble, members: {{plain-32: 2}}}}")
    declared = declare(*OTHER_DATA, *NAMES_ONE, "scales:\n", of_other)
    records = derived_records(declared, "pair", [9.0, 9.1], scale="laptop")
    assert list(counted_records(declared, "laptop", records)) == ["pair"]


def test_index_finds_what_a_search_through_all_records_finds(experiment, record):
    records = [record(experiment, name, seed, 9.0) for name in ("plain-20", "resnet-20") for seed in range(4)]
    records += [replace(one, manifest="other data") for one in records[::3]]  # several of one declaration
    random.Random(0).shuffle(records)
    index = RecordIndex(records)
    for size in range(len(records)):
        wanted = {one.declaration for one in records[:size]}
        assert index.matching(wanted) == [one for one in records if one.declaration in wanted]
    assert index.matching(["unknown"]) == []
    assert index.seeds == {0, 1, 2, 3}


def test_records_and_their_index_count_alike(experiment, record):
    records = [record(experiment, "plain-20", seed, 9.0) for seed in range(5)]
    records.append(replace(records[0], seed=7, changes={"train.lr": 0.5}))
    index = unchanged_records(records)
    assert unchanged_records(index) is index
    assert counted_records(experiment, "paper", index) == counted_records(experiment, "paper", records)
    assert [one.seed for one in counted_records(experiment, "paper", index)["plain-20"]] == [0, 1, 2, 3, 4]


def test_an_index_chooses_the_records_of_a_recipe_once(experiment, both, monkeypatch):
    records = both(experiment)
    index = unchanged_records(records)
    first = counted_records(experiment, "paper", index)
    monkeypatch.setattr(RecordIndex, "matching", lambda *_: pytest.fail("searched again"))
    assert counted_records(experiment, "paper", index) == first
    assert first["plain-20"][0] is records[0]  # not copied, since it has the name that it counts for
    renamed = experiment.model_copy(update={"name": "other/x"})
    (other, *_) = counted_records(renamed, "paper", index)["plain-20"]
    assert other == replace(records[0], experiment="other/x")
    assert records[0].experiment == experiment.name


def test_changed_runs_of_a_left_out_variant_keep_their_row(declare, seed_records):
    declared = declare(*OTHER_DATA, *NAMES_ONE)
    changes = {"train.lr": 0.05}
    records = seed_records(declared, "plain-32", DEEP, scale="laptop", changes=changes)
    assert len(records_of(declared, "laptop", "plain-32", records, changes)) == 5
