"""Test that paths in a set's metadata do not name directories of the machine that made it."""

from __future__ import annotations

from pathlib import Path

from cafe_core.synthetic_set.relative_paths import relative_name, with_relative_paths


def test_relative_names_are_unchanged(tmp_path: Path) -> None:
    for text in ("digits", "shapes", "sub/shapes.npz", "ds_abc"):
        assert relative_name(text, tmp_path) == text


def test_absolute_names_within_the_root_become_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert relative_name(str(tmp_path / "real/sub/shapes"), tmp_path / "real") == "sub/shapes"
    assert relative_name(str(tmp_path / "link/shapes"), tmp_path / "real") == "shapes"
    assert relative_name(str(tmp_path / "real/shapes"), tmp_path / "link") == "shapes"


def test_other_absolute_names_keep_only_their_last_part(tmp_path: Path) -> None:
    assert relative_name("/home/someone/shapes", tmp_path) == "shapes"


def test_paths_of_a_spec_outside_the_root_are_left_out(tmp_path: Path) -> None:
    """A relative path that is kept could name a different dataset on another machine."""
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    spec = {
        "dataset": {"path": str(tmp_path / "root" / "a"), "channels": 1},
        "base": {"path": "/else/b"},
        "synthetic": {"dataset": {"path": "./c"}},  # relative to the current directory
        "network": {"path": "../outside"},
        "labels": {"note": "/kept"},
        "ipc": 1,
    }
    assert with_relative_paths(spec, tmp_path / "root") == {
        "dataset": {"path": "a", "channels": 1},
        "base": {},
        "synthetic": {"dataset": {}},
        "network": {},
        "labels": {"note": "/kept"},
        "ipc": 1,
    }


def test_relative_paths_are_kept_if_the_root_is_not_known() -> None:
    assert with_relative_paths({"dataset": {"path": "a"}, "base": {"path": "/b"}}) == {"dataset": {"path": "a"}, "base": {}}
