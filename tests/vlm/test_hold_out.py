"""Owns: which rows are held out - whole videos, the same ones in every run, never all of a source."""

from pathlib import Path

import pytest

from moss_vllm.data.rows import ClipRow, Turn
from moss_vllm.vlm.held_out import hold_out
from moss_vllm.vlm.plan import Plan

TURNS = (Turn("What moves?", "The red circle."),)


def row(name, number=0, folder="videos", **more):
    path = Path(folder) / f"{name}.mp4" if name else None
    return ClipRow(f"{name}#{number}", path, TURNS, None, None, **more)


def plan_of(*sources, weights=None):
    rows = [one for rows in sources for one in rows]
    weights = weights or [float(len(rows)) for rows in sources]
    shares = [(len(rows), weight) for rows, weight in zip(sources, weights, strict=True)]
    return Plan(rows, list(range(len(rows))), [f"s{n}" for n in range(len(sources))], shares, [])


MANY = [row(f"v{n // 3}", n) for n in range(60)]  # three rows of each of twenty videos


def test_no_video_stands_on_both_sides_and_no_row_is_lost():
    plan = plan_of(MANY)
    kept, unseen = hold_out(plan, 10)
    assert len(unseen.rows) == 9 and sorted(map(id, [*kept.rows, *unseen.rows])) == sorted(map(id, MANY))
    assert not {one.path for one in kept.rows} & {one.path for one in unseen.rows}
    places = {id(one): number for number, one in enumerate(MANY)}
    for part in (kept, unseen):  # in the order that they had, with their own tokens
        assert part.tokens == sorted(part.tokens) == [places[id(one)] for one in part.rows]
    assert kept.shares == [(51, 51.0)] and kept.held_out == 9
    assert kept.line() == "kept 51 of 60 rows: 0 too long, 0 bad, 0 missing; 9 more are held out of training"
    assert plan.rows == MANY and plan.held_out == 0


def test_the_same_videos_are_held_out_in_another_order_folder_and_source():
    _, unseen = hold_out(plan_of(MANY), 10)
    elsewhere = [row(one.path.stem, n, folder="disk/else") for n, one in enumerate(reversed(MANY))]
    _, other = hold_out(plan_of(elsewhere[:20], elsewhere[20:]), 10)
    names = {one.path.name for one in unseen.rows}
    assert {one.path.name for one in other.rows} == names and len(names) == 3


def test_parts_that_were_cut_from_one_video_stay_together():
    parts = [row(f"part{n}", cut_from=f"long{n % 4}") for n in range(24)]
    kept, unseen = hold_out(plan_of(parts), 6)
    assert {one.cut_from for one in unseen.rows} == {unseen.rows[0].cut_from} and len(unseen.rows) == 6
    assert unseen.rows[0].cut_from not in {one.cut_from for one in kept.rows}


def test_a_link_to_a_file_is_that_file(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.mp4").symlink_to(tmp_path / "videos" / "a.mp4")
    rows = [row("a", folder=tmp_path / "videos"), row("b", folder=tmp_path / "links"), row("c"), row("d")]
    kept, unseen = hold_out(plan_of(rows), 2)
    assert {one.row_id for one in unseen.rows} in ({"a#0", "b#0"}, {"c#0", "d#0"})


def test_rows_without_a_video_are_held_out_one_by_one():
    rows = [ClipRow(f"text#{n}", None, TURNS, None, None) for n in range(5)]
    kept, unseen = hold_out(plan_of(rows), 2)
    assert (len(kept.rows), len(unseen.rows)) == (3, 2)


def test_given_weights_stay_and_those_that_are_counts_follow():
    kept, unseen = hold_out(plan_of(MANY[:30], MANY[30:]), 12)
    first, second = (count for count, _ in kept.shares)
    assert kept.shares == [(first, float(first)), (second, float(second))] and first + second == 48
    assert [count for count, _ in unseen.shares] == [30 - first, 30 - second]
    kept, _ = hold_out(plan_of(MANY[:30], MANY[30:], weights=[30.0, 100.0]), 12)  # one is a count by chance
    assert kept.shares == [(first, 30.0), (second, 100.0)]


def test_videos_of_one_name_in_several_folders_do_not_depend_on_the_order_of_rows():
    rows = [row("clip", n, folder=f"videos/{n}") for n in range(8)]
    taken = [{one.path for one in hold_out(plan_of(some), 3)[1].rows} for some in (rows, rows[::-1])]
    assert taken[0] == taken[1] and len(taken[0]) == 3


def test_too_few_and_too_many_rows_are_refused():
    with pytest.raises(
        ValueError, match="held_out is 2 and every video has 3 rows or more; give at least that"
    ):
        hold_out(plan_of(MANY), 2)
    with pytest.raises(ValueError, match="held_out is 100, which leaves s0, s1 without a row; lower it"):
        hold_out(plan_of(MANY[:3], MANY[3:]), 100)
