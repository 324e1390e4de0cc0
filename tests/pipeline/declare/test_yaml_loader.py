"""YAML loading: floats as in YAML 1.2, duplicate keys, and the same result with and without libyaml."""

import datetime

import pytest
import yaml

from pipeline.declare import yaml_loader
from pipeline.declare.yaml_loader import LOADERS, StrictLoader, parse_yaml


@pytest.fixture(params=["libyaml", "pure Python"])
def parse(request, monkeypatch):
    """`parse_yaml` with each parser."""
    if request.param == "libyaml":
        if len(LOADERS) == 1:
            pytest.skip("PyYAML was built without libyaml")
    else:
        monkeypatch.setattr(yaml_loader, "LOADERS", [StrictLoader])
    return parse_yaml


def test_libyaml_is_used_where_pyyaml_has_it():
    assert [issubclass(loader, yaml.SafeLoader) for loader in LOADERS] == [False] * yaml.__with_libyaml__ + [True]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-5E+3", -5000.0),
        ("2.5e3", 2500.0),
        (".5e-1", 0.05),
        ("1.e2", 100.0),
        ("1.0e-4", 1e-4),
        ("12", 12),
        ("1e", "1e"),
        ("e-4", "e-4"),
        ("v1e4", "v1e4"),
        ("1e4x", "1e4x"),
        ("'1e4'", "1e4"),
    ],
)
def test_a_number_with_an_exponent_is_a_float(parse, text, value):
    loaded = parse(text)
    assert loaded == value
    assert type(loaded) is type(value)


def test_other_scalars_are_those_of_yaml_1_1(parse):
    text = "[yes, null, ~, .inf, 0x1F, 1_000, 2001-12-14, <, 'a', \"b\", c d]"
    assert parse(text) == [
        True, None, None, float("inf"), 31, 1000, datetime.date(2001, 12, 14), "<", "a", "b", "c d"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "key", "line", "column"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", 3, 1),
        ("a: {x: 1, x: 2}", "x", 1, 11),
        ("- - {x: 1,\n     x: 2}", "x", 2, 6),
        ('{1: a, "1": b}', "1", 1, 8),  # the texts are equal
        ("? {x: 1, x: 2}\n: 1", "x", 1, 10),  # in a key
        ("b: &b {x: 1}\nc: {<<: *b, <<: *b}", "<<", 2, 13),
        ("a: {<<: {x: 1, x: 2}}", "x", 1, 16),  # in a merged map
        ("!!set {x, x}", "x", 1, 11),
    ],
)
def test_a_duplicate_key_is_an_error_with_its_line(parse, text, key, line, column):
    with pytest.raises(yaml.YAMLError) as caught:
        parse(text)
    message = " ".join(str(caught.value).split())
    assert message.startswith(
        f"the key '{key}' is given twice in \"<unicode string>\", line {line}, column {column}"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("base: &b {x: 1, y: 2}\nown: {<<: *b, y: 3}\n", {"base": {"x": 1, "y": 2}, "own": {"x": 1, "y": 3}}),
        ("a: &a {<<: {x: 1}, x: 2}\nb: {<<: *a, x: 3}\n", {"a": {"x": 2}, "b": {"x": 3}}),
        ("[&a {x: 1}, *a, *a]", [{"x": 1}] * 3),
        ("[{x: 1}, {x: 1}]", [{"x": 1}] * 2),
        ("{x: x}", {"x": "x"}),
    ],
)
def test_a_merged_key_and_an_alias_are_no_duplicates(parse, text, value):
    assert parse(text) == value


def test_a_map_that_contains_itself_is_checked_once(parse):
    loaded = parse("&a {x: *a}")
    assert loaded["x"] is loaded


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{depth:}", {"depth": None}),
        ("{model:{depth: 20}}", {"model": {"depth": 20}}),
        ("[1:, 2]", [{1: None}, 2]),
    ],
)
def test_both_parsers_accept_the_same_texts(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    "text", ["[1, 2", "\ta: 1", "a: b: c", "*nothing", "!!python/object:os.system {}", "a: \x07"]
)
def test_an_invalid_text_is_a_yaml_error(parse, text):
    with pytest.raises(yaml.YAMLError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "words"), [("2001-13-45", "month must be in 1..12"), ("a: \udcff", "not allowed")]
)
def test_a_value_that_does_not_exist_is_a_yaml_error(parse, text, words):
    with pytest.raises(yaml.YAMLError, match=words):
        parse(text)


@pytest.mark.parametrize("text", ["", "# a comment\n", "---\n"])
def test_an_empty_text_is_none(parse, text):
    assert parse(text) is None
