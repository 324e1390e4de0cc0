"""Helpers that tests import by name: fake data, small runs, servers and clusters on this machine."""
