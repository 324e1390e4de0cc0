"""Hashes of data and of code: what counts, and what does not."""

import hashlib
from pathlib import Path

import pytest

from pipeline.common.hashing import canonical_json, code_digest, definitions, digest


@pytest.fixture
def write(tmp_path):
    """Write a module of a package "pipeline" in the test's folder, and return its path."""

    def write_module(name: str, source: str) -> Path:
        path = tmp_path / "pipeline" / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(source, encoding="utf-8")
        return path

    return write_module


# --- data --------------------------------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


def test_the_digest_is_the_beginning_of_the_sha256_of_canonical_json():
    value = {"b": [1, 2.5, None], "a": "é"}
    assert canonical_json(value) == '{"a":"\\u00e9","b":[1,2.5,null]}'
    assert digest(value) == hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@pytest.mark.parametrize("value", [float("nan"), {"a": float("inf")}])
def test_a_number_that_is_not_finite_has_no_digest(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        digest(value)


def test_an_object_has_no_digest():
    with pytest.raises(TypeError, match="not JSON serializable"):
        digest({"a": object()})


# --- definitions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", set()),
        ('"""A module."""\n', set()),
        ("A = 1  # why\n\n\nB = 2\n", {"A = 1", "B = 2"}),
        ("import os, sys\nfrom math import pi, e as euler\n", {
            "import os", "import sys", "from math import pi", "from math import e as euler"
        }),
        ('def f(x):\n    """Return x."""\n    return x\n', {"def f(x):\n    return x"}),
        ('def f():\n    """Do nothing."""\n', {"def f():\n    pass"}),
        ("def f():\n    raise ValueError('no')\n", {"def f():\n    raise ValueError"}),
        ("def f():\n    raise\n", {"def f():\n    raise"}),
        ("if TYPE_CHECKING:\n    from torch import Tensor\n", set()),
        ("if A:\n    B = 1\n", {"if A:\n    B = 1"}),
        ("from pipeline.data.order import f\nA = f(1)\n", {"A = f(1)"}),
        ("from lightning_modules import names\n", set()),
        ("from pipeline.data.order import f as g\n", {"from _ import f as g"}),
        ("def f():\n    from pipeline.data.order import g\n    return g\n", {"def f():\n    pass\n    return g"}),
        ("'text'\nA = 'text'\n", {"A = 'text'"}),
    ],
)  # fmt: skip
def test_definitions_are_normalised_statements(write, source, expected):
    assert definitions(write("a.py", source)) == expected


def test_a_name_in_one_of_our_modules_counts_as_the_name_alone(write):
    write("order.py", "def f():\n    return 1\n")
    by_module = write("a.py", "from pipeline import order\nA = order.f()\n")
    by_alias = write("b.py", "from pipeline import order as o\nA = o.f()\n")
    by_name = write("c.py", "from pipeline.order import f\nA = f()\n")
    assert definitions(by_module) == definitions(by_alias) == definitions(by_name) == {"A = f()"}


def test_a_name_in_another_library_counts_with_its_module(write):
    assert definitions(write("a.py", "import numpy as np\nA = np.f()\n")) == {
        "import numpy as np", "A = np.f()"
    }  # fmt: skip


def test_a_changed_file_is_read_again(write):
    assert definitions(write("a.py", "A = 1\n")) == {"A = 1"}
    assert definitions(write("a.py", "A = 1\nB = 2\n")) == {"A = 1", "B = 2"}


def test_a_syntax_error_is_an_error(write):
    with pytest.raises(SyntaxError):
        definitions(write("a.py", "def f(:\n"))


# --- code --------------------------------------------------------------------------------------------------


def test_the_code_digest_is_that_of_the_set_of_definitions(write):
    whole = write("whole.py", "import math\nA = 1\nB = math.pi\n")
    parts = [write("first.py", "import math\nB = math.pi\n"), write("second.py", "A = 1\n")]
    assert code_digest([whole]) == code_digest(parts) == code_digest(reversed(parts))
    assert code_digest([whole]) == code_digest([whole, *parts])
    assert code_digest([whole]) == digest(["A = 1", "B = math.pi", "import math"])


@pytest.mark.parametrize("source", ["A = 2\n", "A = 1\nB = 1\n", "B = 1\n", "A = 1.0\n", ""])
def test_another_definition_changes_the_code_digest(write, source):
    assert code_digest([write("a.py", "A = 1\n")]) != code_digest([write("b.py", source)])
