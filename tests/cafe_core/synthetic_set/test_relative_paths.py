"""Test that paths in a set's metadata do not name directories of the machine that made it."""

from __future__ import annotations

from pathlib import Path

from cafe_core.synthetic_set.relative_paths import relative_path, with_relative_paths


def test_relative_paths_and_names_are_unchanged(tmp_path: Path) -> None:
    for text in ("digits", "shapes", "sub/shapes.npz", "ds_abc"):
        assert relative_path(text, tmp_path) == text


def test_absolute_paths_within_the_root_become_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert relative_path(str(tmp_path / "real/sub/shapes"), tmp_path / "real") == "sub/shapes"
    assert relative_path(str(tmp_path / "link/shapes"), tmp_path / "real") == "shapes"
    assert relative_path(str(tmp_path / "real/shapes"), tmp_path / "link") == "shapes"


def test_other_absolute_paths_keep_only_their_last_part(tmp_path: Path) -> None:
    assert relative_path("/home/someone/shapes", tmp_path) == "shapes"


def test_paths_of_a_spec_are_made_relative_at_any_depth(tmp_path: Path) -> None:
    spec = {"dataset": {"path": str(tmp_path / "a")}, "base": {"path": "/else/b"}, "labels": {"note": "/kept"}, "ipc": 1}
    assert with_relative_paths(spec, tmp_path) == {
        "dataset": {"path": "a"},
        "base": {"path": "b"},
        "labels": {"note": "/kept"},
        "ipc": 1,
    }
