"""The picture: the same for the same figures, small, and with a name for every curve."""

from __future__ import annotations

from pathlib import Path

from benchmarks.picture import Curve, draw

CURVES = (
    Curve("ours", ((0.8, 5_000.0), (0.99, 1_000.0)), is_ours=True),
    Curve("another", ((0.99, 500.0), (0.8, 2_000.0))),
)


def test_the_same_figures_make_the_same_file(tmp_path: Path) -> None:
    draw(CURVES, tmp_path / "one.svg")
    draw(CURVES, tmp_path / "two.svg")
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    assert all(name in drawn for name in (b">ours<", b">another<", b">recall@10<"))


def test_other_figures_make_another(tmp_path: Path) -> None:
    draw(CURVES, tmp_path / "one.svg")
    draw(CURVES[:1], tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() != (tmp_path / "two.svg").read_bytes()


def test_a_picture_is_small(tmp_path: Path) -> None:
    draw(CURVES, tmp_path / "one.svg")
    assert (tmp_path / "one.svg").stat().st_size < 100_000
