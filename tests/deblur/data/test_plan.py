"""The sampling plan: each position at most once, the same batches for any number of ranks."""

from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from deblur.data.plan import Plan, lanes_of

plans = st.builds(
    lambda sizes, batch, seed: Plan(shard_sizes=tuple(sizes), batch_size=min(batch, sum(sizes)), seed=seed),
    st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(sum),
    st.integers(1, 24),
    st.integers(0, 2**31),
)


def batch_of(plan: Plan, epoch: int, update: int, lanes: range) -> list[tuple[int, int]]:
    return [plan.sample(epoch, plan.position(lane, update)) for lane in lanes]


def consumed(plan: Plan, epoch: int, updates: range, num_ranks: int) -> list[tuple[int, int]]:
    ranks = [lanes_of(rank, num_ranks, plan.batch_size) for rank in range(num_ranks)]
    return [sample for update in updates for lanes in ranks for sample in batch_of(plan, epoch, update, lanes)]


@given(plan=plans, epoch=st.integers(0, 5))
def test_every_sample_of_full_batches_is_used_exactly_once(plan: Plan, epoch: int) -> None:
    seen = consumed(plan, epoch, range(plan.updates_per_epoch), 1)
    everything = {(s, i) for s, size in enumerate(plan.shard_sizes) for i in range(size)}
    assert len(seen) == len(set(seen))
    assert set(seen) <= everything
    assert len(everything) - len(seen) == plan.num_samples % plan.batch_size < plan.batch_size


@given(plan=plans, epoch=st.integers(0, 5), data=st.data())
def test_restarts_and_the_number_of_ranks_change_nothing(plan: Plan, epoch: int, data: st.DataObject) -> None:
    """A run that is stopped any number of times, anywhere, and resumed with any number of ranks."""
    per_epoch, seen, images = plan.updates_per_epoch, [], epoch * plan.updates_per_epoch * plan.batch_size
    while plan.locate(images)[0] == epoch:
        first = plan.locate(images)[1]
        until = data.draw(st.integers(first + 1, per_epoch))
        ranks = data.draw(st.integers(1, plan.batch_size))
        seen += consumed(plan, epoch, range(first, until), ranks)
        images += (until - first) * plan.batch_size
    assert seen == consumed(plan, epoch, range(per_epoch), 1)


@given(batch=st.integers(1, 200), data=st.data())
def test_lanes_per_rank_differ_by_at_most_one_and_cover_the_batch(batch: int, data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, batch))
    shares = [lanes_of(rank, ranks, batch) for rank in range(ranks)]
    assert list(chain(*shares)) == list(range(batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(plan=plans, epoch=st.integers(0, 3))
def test_a_lane_reads_sequentially_with_few_jumps(plan: Plan, epoch: int) -> None:
    """Consecutive samples of a lane are adjacent in a shard, except at the ends of shards."""
    jumps = 0
    for lane in range(plan.batch_size):
        samples = [plan.sample(epoch, plan.position(lane, update)) for update in range(plan.updates_per_epoch)]
        jumps += sum(b != (a[0], a[1] + 1) for a, b in pairwise(samples))
    assert jumps <= len(plan.shard_sizes) + 1


def test_epochs_differ_even_with_one_shard() -> None:
    plan = Plan(shard_sizes=(23,), batch_size=4, seed=0)
    sat_out = set()
    for epoch in range(40):
        sat_out |= {(0, i) for i in range(23)} - set(consumed(plan, epoch, range(5), 1))
    assert sat_out == {(0, i) for i in range(23)}


def test_seeds_differ() -> None:
    orders = {tuple(consumed(Plan(shard_sizes=(9,) * 9, batch_size=2, seed=s), 0, range(40), 1)) for s in range(5)}
    assert len(orders) == 5


def test_more_ranks_than_images_in_a_batch_is_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"5 ranks.*batches of 4.*--batch-size 5"):
        lanes_of(0, 5, 4)


def test_a_batch_larger_than_the_split_is_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"batch size 16.*12 samples.*--batch-size 12"):
        Plan(shard_sizes=(5, 7), batch_size=16, seed=0)


def test_more_ranks_than_shards_are_allowed() -> None:
    plan = Plan(shard_sizes=(64,), batch_size=32, seed=1)
    assert sorted(consumed(plan, 0, range(2), 32)) == [(0, i) for i in range(64)]


def test_images_seen_must_be_a_multiple_of_the_batch_size() -> None:
    with pytest.raises(ValueError, match=r"6 images.*batch size 4"):
        Plan(shard_sizes=(64,), batch_size=4, seed=0).locate(6)
