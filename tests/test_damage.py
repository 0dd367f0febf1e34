"""Damaged files of every kind through the entry points that read them: a result or one line, each time (tests.damage)."""

from pathlib import Path

import numpy as np
import pytest

from tests.damage import KINDS, fuzz, make_world, mutate_bytes, mutate_text, mutate_tree, run


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


def defects(world: Path, count: int, seed: int) -> str:
    found = [(n, kind, command, outcome) for n, kind, command, outcome in fuzz(world, count, seed) if outcome]
    return "\n".join(f"--only {k} --seed {n}: {c}\n{o}" for n, k, c, o in found if o.startswith("defect"))


def test_a_few_of_each_kind(world):
    assert defects(world, 2 * len(KINDS), 0) == ""


@pytest.mark.slow
def test_two_thousand(world):
    assert defects(world, 2000, 10_000) == ""


def test_what_is_no_users_error_is_found(monkeypatch):
    def broken(args: object) -> None:
        raise ValueError("too many values to unpack")

    monkeypatch.setattr("models.main", broken)
    assert run("models.py --cfg net.cfg").startswith("defect\nTraceback")
    monkeypatch.setattr("models.main", lambda args: None)
    assert run("models.py --cfg net.cfg") is None
    assert run("models.py --nonsense") == "2"


def test_mutations_change_something_and_follow_the_seed():
    def changed(mutate: object, value: object, *rest: object) -> int:
        again = [mutate(value, np.random.default_rng(n), *rest) for n in range(20)]
        assert again == [mutate(value, np.random.default_rng(n), *rest) for n in range(20)]
        return sum(found != value for found in again)

    assert changed(mutate_bytes, bytes(range(100))) >= 18
    assert changed(mutate_text, b"a=1\nb=2\n[c]\n") >= 12
    assert changed(mutate_tree, {"a": [1, {"b": 2}]}, ["x"]) >= 15
