"""The files of measurements: where they are, what they keep, and that none of it is ever in the way."""

import json
from pathlib import Path

import pytest

from handgrad import measurements
from handgrad.host import remembered as of_host
from handgrad.plans import remembered as of_plans


def test_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for chosen, xdg, expected in (
        ("a", "x", tmp_path / "a"),
        ("a", "", tmp_path / "a"),
        ("", "x", tmp_path / "x" / "handgrad"),
        ("", "", tmp_path / "home" / ".cache" / "handgrad"),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HANDGRAD_CACHE", chosen)
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert measurements.file_named("some.json") == expected / "some.json"
        assert of_plans.file() == expected / "plans.json"


def test_without_a_home_nothing_is_kept_and_nothing_is_wrong(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HANDGRAD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert measurements.file_named("some.json") is None
    assert not of_host.remember((2, 3, 4), 5, 4, {"block": 1})
    assert of_host.find((2, 3, 4), 5, 4) is None
    assert list(tmp_path.iterdir()) == []


def test_rows_are_kept_beside_others_and_nothing_else_is_left(tmp_path):
    file = tmp_path / "deeper" / "some.json"
    assert measurements.find(file, "one", "a") is None
    rows = [("one", "a", {"n": 1}), ("two", "a", {"n": 2}), ("one", "b", {"n": 3}), ("one", "a", {"n": 4})]
    for owner, key, row in rows:  # at once one after another: each sees the one before
        assert measurements.remember(file, owner, key, row)
    assert json.loads(file.read_text()) == {"one": {"a": {"n": 4}, "b": {"n": 3}}, "two": {"a": {"n": 2}}}
    assert measurements.find(file, "one", "b") == {"n": 3}
    assert measurements.find(file, "three", "a") is None
    assert [one.name for one in file.parent.iterdir()] == ["some.json"]


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"one": 3}', "\x00", b"\xff\xfe"], ids=repr)
def test_a_damaged_file_counts_as_empty(tmp_path, text):
    file = tmp_path / "some.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert measurements.find(file, "one", "a") is None
    assert measurements.remember(file, "one", "a", {"n": 1})
    assert measurements.find(file, "one", "a") == {"n": 1}


def test_a_row_that_is_none_is_passed_over(tmp_path):
    file = tmp_path / "some.json"
    file.write_text('{"one": {"a": 3, "b": {"n": 1}}}')
    assert measurements.find(file, "one", "a") is None
    assert measurements.find(file, "one", "b") == {"n": 1}


def test_a_place_that_cannot_be_written_is_told_by_false(tmp_path):
    (tmp_path / "file").write_text("")
    assert not measurements.remember(tmp_path / "file" / "some.json", "one", "a", {"n": 1})
    (tmp_path / "some.json").mkdir()  # a folder has its name
    assert not measurements.remember(tmp_path / "some.json", "one", "a", {"n": 1})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "some.json"], "no part is left"
