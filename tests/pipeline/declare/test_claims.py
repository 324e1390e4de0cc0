"""Claims: unknown keys, missing keys and contradictions are errors that name the claim."""

import pytest

from pipeline.declare.experiment import DeclarationError

# ruff: noqa: E501 - one error per line reads as a table
ERRORS = {  # replaced text, new text, message
    "exact of nothing": ("of: plain-20, metric: model", "metric: model", "claims.size: 'model/parameters' needs 'of', the variant it is measured on"),
    "less within a margin": ("claimed: 270000", "op: '<', claimed: 270000", "claims.size: op '<' takes no margin"),
    "less than a list": ("claimed: 270000, margin: 5000", "op: '<', claimed: [1, 2]", "claims.size: op '<' needs a number as 'claimed', not [1, 2]"),
    "correction that corrects nothing": ("corrected: 1e-4", "corrected: 1e-5", "claims.decay: 'corrected' is equal to 'claimed'; remove it"),
    "equality without a margin": ("op: \">\", rhs", "op: \"~\", rhs", "claims.deeper: op '~' needs a margin > 0"),
    "ratio down to zero": ("margin: 0.1,", "margin: 1.1,", "claims.ratio: the margin of a ratio must be > 0 and less than the claimed 1.1"),
    "ratio without a margin": ("margin: 0.1,", "", "claims.ratio: the margin of a ratio must be > 0 and less than the claimed 1.1"),
    "ratio below a number within a margin": ("margin: 0.1,", "margin: 0.1, op: '<',", "claims.ratio: op '<' takes no margin"),
    "not a number, claimed": ("claimed: 270000", "claimed: .nan", "claims.size.claimed: should be a finite number, not nan"),
    "operator": ("op: \">\", claimed", "op: \"=>\", claimed", "claims.stuck.op: unknown value '=>'; did you mean '>'?"),
    "reason": ("no-labels", "no-label", "claims.prize.reason: unknown value 'no-label'; did you mean 'no-labels'?"),
    "statistic": ("margin: 0.5,", "margin: 0.5, statistic: best of five,", "claims.error.statistic: unknown statistic 'best of five'; use 'mean', 'median of N' or 'best of N'"),
    "exact claim": ("margin: 5000", "margn: 5000", "claims.size.margn: unknown key; did you mean 'margin'?"),
    "metric claim": ("margin: 0.5", "margn: 0.5", "claims.error.margn: unknown key; did you mean 'margin'?"),
    "ordering claim": ("lhs: plain-32, op", "left: plain-32, op", "claims.deeper.left: unknown key; known: by, confidence, id, kind, lhs, margin, metric, op, rhs, rhs_metric, says, source"),
    "departure": ("what: Pixels", "wat: Pixels", "departures.0.wat: unknown key; did you mean 'what'?"),
    "kind of claim": ("kind: metric", "kind: metrc", "claims.error: unknown kind 'metrc'; did you mean 'metric'?"),
    "no claim's source": (", source: \"ILSVRC\"", "", "claims.prize.source: this key is required"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_an_invalid_claim_is_an_error_with_its_id_key_and_reason(declare, old, new, message):
    with pytest.raises(DeclarationError) as caught:
        declare(old, new)
    assert str(caught.value) == f"toy/depth.yaml: {message}"
