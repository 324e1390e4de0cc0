"""Test the evidence of a verdict: runs, devices, consumed runs."""

import json
from dataclasses import replace

from tests.support.ledgers import OF_PAIR, PLAIN, SIX_SEEDS, derived_records, judge_by_id, with_device_batches


def test_evidence_names_every_run(experiment, both):
    records = both(experiment)
    evidence = judge_by_id(experiment, records)["deeper"].evidence
    assert (evidence.scale, evidence.data, evidence.seeds, evidence.images) == (
        "paper",
        "cifar10",
        (0, 1, 2, 3, 4),
        10_000,
    )
    assert set(evidence.runs) == {record.identity for record in records}
    assert set(evidence.run_ids) == {record.run_id for record in records}
    assert set(evidence.declarations) == {record.declaration for record in records}
    assert len(evidence.declarations) == 10
    assert evidence.manifests == ("manifest of cifar10",)
    assert (evidence.code, evidence.locks, evidence.commits) == (("code-1",), ("lock-1",), ("0123456789abcdef",))
    assert (evidence.hardware, evidence.precision) == (("one core",), ("fp32",))
    assert (evidence.world, evidence.device_batch) == ((1,), (0,))


def test_evidence_has_devices_and_batch_per_device(experiment, seed_records):
    records = with_device_batches(seed_records(experiment, "plain-20", PLAIN), [64, 64, 32, 64, 128])
    entry = judge_by_id(experiment, records)["error"]
    assert (entry.evidence.world, entry.evidence.device_batch) == ((2, 4, 1), (64, 32, 128))
    plain = json.loads(json.dumps(entry.to_dict()))["evidence"]
    assert (plain["world"], plain["device_batch"]) == ([2, 4, 1], [64, 32, 128])
    assert entry.verdict.outcome == "reproduced"
    assert entry.verdict.sentence.endswith(
        ". Batch normalisation used different batch sizes per device in these runs: plain-20 (32, 64, 128 images)."
    )


def test_evidence_names_consumed_runs_after_the_derived_runs(declare, seed_records):
    declared = declare(*OF_PAIR, *SIX_SEEDS, 'lhs: plain-32, op: ">"', 'lhs: pair, op: "<"')
    runs = seed_records(declared, "plain-20", [*PLAIN, 9.5])
    names = [record.identity for record in runs]
    derived = derived_records(declared, "pair", [8.4, 8.5, 8.6])
    derived = [replace(record, members=tuple(names[record.seed : record.seed + 2])) for record in derived]
    found = judge_by_id(declared, [*derived, *runs])
    own = tuple(record.identity for record in derived)
    assert (found["error"].evidence.runs, found["error"].evidence.members) == (own + tuple(names), tuple(names))
    both = found["deeper"].evidence  # compares the pairs with their members
    assert (set(both.runs), len(both.runs), both.members) == ({*own, *names}, 9, ())
