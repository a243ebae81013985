"""Owns: which rows a step reads - sources by weight, all rows of one before any again, any place alone."""

from collections import Counter

import pytest

from moss_vllm.training.row_order import RowOrder


def test_each_block_holds_each_source_as_often_as_its_weight_says():
    order = RowOrder([(10, 3.0), (500, 1.0)], seed=0)
    for block in range(3):
        rows = [order[place] for place in range(block * 1024, (block + 1) * 1024)]
        assert sum(row < 10 for row in rows) == 768
    # In a random order, not one source after the other.
    early = [order[place] < 10 for place in range(100)]
    assert 60 < sum(early) < 90 and len(set(early)) == 2


def test_every_row_of_a_source_comes_before_any_comes_again():
    order = RowOrder([(10, 3.0), (500, 1.0)], seed=1)
    drawn = [order[place] for place in range(4096)]
    small, large = [row for row in drawn if row < 10], [row for row in drawn if row >= 10]
    for start in range(0, len(small) - 9, 10):
        assert sorted(small[start : start + 10]) == list(range(10))
    assert sorted(large[:500]) == list(range(10, 510))
    assert small[:10] != small[10:20]  # a new permutation each epoch


def test_any_place_is_known_without_those_before_it():
    shares = [(7, 1.0), (30, 2.5), (4, 0.5)]
    walked = RowOrder(shares, seed=3)
    sequence = [walked[place] for place in range(3000)]
    for place in (2999, 0, 1023, 1024, 1700):
        assert RowOrder(shares, seed=3)[place] == sequence[place]


def test_places_add_up_and_a_weight_too_small_for_one_is_refused():
    order = RowOrder([(5, 2.1), (5, 1000.0), (5, 1000.0)], seed=0)
    assert order.mix.places.tolist() in ([1, 511, 512], [1, 512, 511])
    assert Counter(order[place] // 5 for place in range(1024))[0] == 1
    with pytest.raises(ValueError, match="one has less than 1/1024 of the weight; raise its weight or leave"):
        RowOrder([(5, 1e-9), (5, 1.0), (5, 1.0)], seed=0)


def test_sources_without_weights_are_read_as_one():
    order = RowOrder([(3000, 3000.0), (2, 2.0), (1, 1.0)], seed=0)  # two of them below a place in 1,024
    assert sorted(order[place] for place in range(3003)) == list(range(3003))
    assert [order[place] for place in range(3003, 6006)] != [order[place] for place in range(3003)]


def test_weights_of_equal_proportion_are_the_same_order():
    one, other = RowOrder([(9, 1.0), (6, 2.0)], seed=5), RowOrder([(9, 10.0), (6, 20.0)], seed=5)
    assert [one[place] for place in range(500)] == [other[place] for place in range(500)]


@pytest.mark.parametrize("shares", [[], [(0, 1.0)], [(3, 1.0), (0, 2.0)]])
def test_a_source_without_rows_is_refused(shares):
    with pytest.raises(ValueError, match="the training set has a source without rows .*check its annotation"):
        RowOrder(shares, 0)
