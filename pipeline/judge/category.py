"""The three kinds of claims, which are judged in different ways and counted apart."""

from typing import Literal

from pipeline.declare.claims import Claim, ExactClaim

Category = Literal["arithmetic", "recipe", "trained"]

SETTINGS = (  # last parts of model/... metrics on which no shape and no count depends
    *("alpha", "beta", "k", "size"),  # of local response normalisation
    *("p", "survival", "drop_path", "global_share"),  # probabilities of dropping
    *("scale", "on_f", "on_shortcut"),  # constants of residual branches and shortcuts
    "aux_weight",
)


def category(claim: Claim) -> Category:
    """Return the kind of a claim: arithmetic on networks and printed values, settings of a recipe, or training.

    A ratio is a setting only if both its sides are. An open claim counts as trained: it states a result of
    training that no run here can measure.
    """
    if not isinstance(claim, ExactClaim):
        return "trained"
    sides = [claim.metric, *([claim.over_metric] if claim.over_metric else [])]
    return "recipe" if all(map(is_setting, sides)) else "arithmetic"


def is_setting(metric: str) -> bool:
    """Return True for recipe/... metrics, and for settings of a network that change no shape and no count."""
    kind, _, rest = metric.partition("/")
    last = rest.rpartition("/")[2]
    return kind == "recipe" or (kind == "model" and (last in SETTINGS or last.startswith("init_")))
