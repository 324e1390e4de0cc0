"""Numbers in environment variables, and the number of CPUs."""

import os

import pytest

from pipeline.common import environment
from pipeline.common.environment import available_cpus, env_integer, env_number
from pipeline.common.errors import UserError

NAME = "REPRO_CHECKPOINT_SECONDS"


@pytest.mark.parametrize("text", ["abc", "", "-1", "nan", "inf"])
def test_an_invalid_number_is_an_error(monkeypatch, text):
    monkeypatch.setenv(NAME, text)
    with pytest.raises(UserError, match=f"^{NAME} is '{text}': must be a number >= 0$"):
        env_number(NAME, 60)


def test_the_error_names_unit_and_limit(monkeypatch):
    monkeypatch.setenv(NAME, "100")
    with pytest.raises(UserError, match=f"^{NAME} is '100': must be a number of seconds >= 0 and < 100$"):
        env_number(NAME, 60, unit="seconds", below=100)
    assert env_number(NAME, 60, unit="seconds", below=101) == 100


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("1.5", 1.5), ("1e-3", 0.001)])
def test_a_number_replaces_the_default(monkeypatch, text, number):
    monkeypatch.setenv(NAME, text)
    assert env_number(NAME, 60) == number


def test_without_the_variable_a_number_is_the_default(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    assert env_number(NAME, 60) == 60
    assert env_integer(NAME, 7, minimum=1) == 7


@pytest.mark.parametrize("text", ["", "0", "-1", "1.0", "+2", " 2", "1_0", "²", "٢", "many"])
def test_an_invalid_integer_is_an_error(monkeypatch, text):
    monkeypatch.setenv(NAME, text)
    with pytest.raises(UserError) as caught:
        env_integer(NAME, 7, minimum=1)
    assert str(caught.value) == f"{NAME} is {text!r}: must be an integer >= 1"


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("16", 16), ("007", 7)])
def test_an_integer_replaces_the_default(monkeypatch, text, number):
    monkeypatch.setenv(NAME, text)
    assert env_integer(NAME, 7, minimum=1) == number


def test_available_cpus_are_those_of_the_process_where_the_system_knows_them(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert available_cpus() == 3


@pytest.mark.parametrize(("count", "expected"), [(8, 8), (None, 1)])
def test_available_cpus_are_otherwise_those_of_the_machine(monkeypatch, count, expected):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert available_cpus() == expected


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 12345"), OSError("No username set")])
def test_a_user_id_without_a_name_is_its_own_name(monkeypatch, error):
    def unknown():
        raise error

    monkeypatch.setattr(environment.getpass, "getuser", unknown)
    assert environment.user_name() == f"uid {os.getuid()}"


def test_the_users_name_is_that_of_the_system(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    assert environment.user_name() == "ada"
