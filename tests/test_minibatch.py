from operator import itemgetter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pgjax
from pgjax.minibatch import by_time, to_batch

SHARDS, SIZE, MINIBATCHES, EPOCHS = 2, 12, 3, 4


@pytest.fixture(scope="module")
def indices():
    return np.asarray(pgjax.shuffled_minibatches(jax.random.key(0), SHARDS, SIZE, MINIBATCHES, EPOCHS))


@given(st.integers(0, 10_000))
def test_every_sample_comes_once_an_epoch_in_every_shard(seed):
    order = pgjax.shuffled_minibatches(jax.random.key(seed), SHARDS, SIZE, MINIBATCHES, EPOCHS)
    assert order.shape == (EPOCHS * MINIBATCHES, SHARDS, SIZE // MINIBATCHES)
    epochs = (
        np.asarray(order)
        .reshape(EPOCHS, MINIBATCHES, SHARDS, -1)
        .swapaxes(1, 2)
        .reshape(EPOCHS, SHARDS, SIZE)
    )
    np.testing.assert_array_equal(np.sort(epochs, -1), np.broadcast_to(np.arange(SIZE), epochs.shape))


def test_epochs_and_shards_are_shuffled_apart(indices):
    orders = indices.reshape(EPOCHS, MINIBATCHES, SHARDS, -1).swapaxes(1, 2).reshape(-1, SIZE)
    assert len(np.unique(orders, axis=0)) == EPOCHS * SHARDS
    assert not (orders == np.arange(SIZE)).all(1).any()


def test_a_shuffle_depends_on_its_key_alone(indices):
    again = pgjax.shuffled_minibatches(jax.random.key(0), SHARDS, SIZE, MINIBATCHES, EPOCHS)
    np.testing.assert_array_equal(again, indices)
    other = pgjax.shuffled_minibatches(jax.random.key(1), SHARDS, SIZE, MINIBATCHES, EPOCHS)
    assert (other != indices).any()


def test_a_permutation_of_ones_own_takes_the_place_of_the_shuffle():
    key = jax.random.key(5)
    order = pgjax.shuffled_minibatches(
        key, SHARDS, SIZE, MINIBATCHES, EPOCHS, permutation=jax.random.permutation
    )
    expected = [jax.random.permutation(k, SIZE) for k in jax.random.split(key, EPOCHS * SHARDS)]
    epochs = order.reshape(EPOCHS, MINIBATCHES, SHARDS, -1).swapaxes(1, 2).reshape(EPOCHS * SHARDS, SIZE)
    np.testing.assert_array_equal(epochs, jnp.stack(expected))


def test_every_place_gets_every_sample_equally_often():
    """2400 shuffles of 4: each of 16 counts is 600 ± 6σ = 600 ± 127, once in 3e7 seeds otherwise."""
    order = pgjax.shuffled_minibatches(jax.random.key(0), 2, 4, 2, 1200)
    places = np.asarray(order).reshape(1200, 2, 2, 2).swapaxes(1, 2).reshape(-1, 4)
    counts = np.stack([np.bincount(places[:, i], minlength=4) for i in range(4)])
    assert (np.abs(counts - 600) < 127).all()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100])
def test_any_size_is_shuffled_to_a_permutation(size):
    order = np.asarray(pgjax.shuffled_minibatches(jax.random.key(3), 2, size, 1, 50))
    np.testing.assert_array_equal(np.sort(order, -1), np.broadcast_to(np.arange(size), order.shape))


def chi_square(outcomes, num_outcomes):
    """Standardised χ² of equally likely outcomes: (χ² − d) / √(2d), about normal."""
    expected = len(outcomes) / num_outcomes
    counts = np.bincount(outcomes, minlength=num_outcomes)
    degrees = num_outcomes - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2.0 * degrees)


def test_a_shuffle_cannot_be_told_from_a_uniform_one():
    """χ² of whole permutations, of pairs of places and of minibatches as sets; each below 5 σ."""
    orders = np.asarray(pgjax.shuffled_minibatches(jax.random.key(0), 1, 5, 1, 60_000))[:, 0]
    _, which = np.unique(orders @ 5 ** np.arange(5), return_inverse=True)
    assert chi_square(which, 120) < 5.0

    orders = np.asarray(pgjax.shuffled_minibatches(jax.random.key(1), 1, 12, 1, 40_000))[:, 0]
    for i, j in [(0, 1), (0, 11), (3, 7), (5, 6)]:
        _, pair = np.unique(12 * orders[:, i] + orders[:, j], return_inverse=True)
        assert chi_square(pair, 132) < 5.0

    orders = np.asarray(pgjax.shuffled_minibatches(jax.random.key(2), 1, 8, 2, 40_000))[:, 0]
    _, half = np.unique((1 << orders).sum(-1), return_inverse=True)
    assert chi_square(half, 70) < 5.0


@pytest.fixture(scope="module", params=[1000, 4096])
def large(request):
    """500 shuffles each of five keys, of a size that is a power of two and of one that is none."""
    size = request.param
    shuffle = jax.jit(jax.vmap(lambda key: pgjax.shuffled_minibatches(key, 1, size, 1, 500)[:, 0]))
    return np.asarray(shuffle(jax.vmap(jax.random.key)(jnp.arange(5))))


def correlation(x, y):
    """Along the last axis, of every shuffle."""
    x, y = (z - z.mean(-1, keepdims=True) for z in (x.astype(float), y.astype(float)))
    return (x * y).mean(-1) / (x.std(-1) * y.std(-1))


def test_a_sample_of_a_large_shard_lands_in_every_part_of_it_equally_often(large):
    """Of 64 parts, for samples at both ends and in the middle: χ² of 2,500 shuffles below 5 σ each."""
    size = large.shape[-1]
    places = np.argsort(large.reshape(-1, size), -1)
    parts = 64 if size % 64 == 0 else 50
    for sample in (0, 1, size // 2 - 1, size // 2, size - 1):
        assert chi_square(places[:, sample] // (size // parts), parts) < 5.0


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 500])
def test_what_follows_in_a_large_shuffle_does_not_depend_on_what_was_before(large, lag):
    """Serial correlation: −1/(n − 1) ± 1/√(n − lag) in uniform permutations; mean and square within 5 σ."""
    orders = large.reshape(-1, large.shape[-1])
    num, size = orders.shape
    found = (correlation(orders[:, :-lag], orders[:, lag:]) + 1.0 / (size - 1)) * np.sqrt(size - lag)
    assert abs(found.mean()) < 5.0 / np.sqrt(num)
    assert abs(np.square(found).mean() - 1.0) < 5.0 * np.sqrt(2.0 / num)


def test_shuffles_of_different_keys_and_epochs_are_independent(large):
    """What two have in the same place: correlation, and χ² of 8 × 8 parts in each 7th place; within 5 σ."""
    size = large.shape[-1]
    for one, other in ((large[:-1], large[1:]), (large[:, :-1], large[:, 1:])):
        assert abs(correlation(one, other).mean()) < 5.0 / np.sqrt(one.size)
        parts = 8 * (one // (size // 8)) + other // (size // 8)
        assert chi_square(parts[..., ::7].ravel(), 64) < 5.0


def test_the_mean_of_a_minibatch_varies_as_sampling_without_replacement_has_it():
    """Var = σ²/m (n − m)/(n − 1); 8,000 minibatches give it to 1.6 % (σ of the ratio), 5 σ allowed."""
    order = np.asarray(pgjax.shuffled_minibatches(jax.random.key(0), 1, 128, 4, 2000))[:, 0]
    for value in (np.arange(128.0), (np.arange(128) % 2).astype(float), (np.arange(128) >= 64).astype(float)):
        expected = value.var() / 32 * (128 - 32) / 127
        assert abs(value[order].mean(-1).var() / expected - 1.0) < 0.08


def test_shards_hold_the_steps_of_their_own_environments_environment_before_time():
    time, env = np.meshgrid(np.arange(3), np.arange(4), indexing="ij")
    tree = {"time": jnp.asarray(time), "pair": jnp.stack([time, env], -1)}
    shards = pgjax.to_shards(tree, 2)
    np.testing.assert_array_equal(shards["time"], [[0, 1, 2, 0, 1, 2]] * 2)
    np.testing.assert_array_equal(shards["pair"][..., 1], [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3]])
    np.testing.assert_array_equal(shards["pair"][..., 0], shards["time"])


def test_a_batch_is_a_rollout_environment_by_environment_and_back():
    time, env = np.meshgrid(np.arange(3), np.arange(4), indexing="ij")
    tree = {"time": jnp.asarray(time), "pair": jnp.stack([time, env], -1)}
    batch = to_batch(tree)
    np.testing.assert_array_equal(batch["time"], [0, 1, 2] * 4)
    np.testing.assert_array_equal(batch["pair"][:, 1], np.repeat(np.arange(4), 3))
    chex.assert_trees_all_equal(by_time(batch, 3), tree)


def test_a_minibatch_takes_from_every_shard_its_own_samples(indices):
    shard, sample = np.meshgrid(np.arange(SHARDS), np.arange(SIZE), indexing="ij")
    tree = {"id": jnp.asarray(SIZE * shard + sample), "wide": jnp.asarray(np.stack([shard, sample], -1))}
    seen = []
    for row in indices[:MINIBATCHES]:
        batch = pgjax.take_minibatch(tree, jnp.asarray(row))
        np.testing.assert_array_equal(batch["id"] // SIZE, np.repeat([0, 1], row.shape[1]))
        np.testing.assert_array_equal(batch["id"] % SIZE, row.ravel())
        np.testing.assert_array_equal(batch["wide"][:, 1], row.ravel())
        seen.append(np.asarray(batch["id"]))
    np.testing.assert_array_equal(np.sort(np.concatenate(seen, None)), np.arange(SHARDS * SIZE))


def test_several_minibatches_are_the_single_ones_stacked(indices):
    tree = {"x": jax.random.normal(jax.random.key(0), (SHARDS, SIZE, 3)), "y": jnp.arange(24).reshape(2, 12)}
    grid = jnp.asarray(indices).reshape(EPOCHS, MINIBATCHES, SHARDS, -1)
    together = pgjax.take_minibatch(tree, grid)
    for i in range(EPOCHS):
        for j in range(MINIBATCHES):
            alone = pgjax.take_minibatch(tree, grid[i, j])
            chex.assert_trees_all_equal(jax.tree.map(itemgetter((i, j)), together), alone)


def test_environments_that_do_not_split_into_the_shards_are_an_error():
    with pytest.raises(ValueError, match="num_shards=3 must divide num_envs=4"):
        pgjax.to_shards(jnp.zeros((2, 4)), 3)


def test_shards_that_do_not_split_into_the_minibatches_are_an_error():
    with pytest.raises(ValueError, match="num_minibatches=5 must divide"):
        pgjax.shuffled_minibatches(jax.random.key(0), 2, 12, 5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 12, 3), "num_shards"),
        ((2, 0, 3), "shard_size"),
        ((2, 12, -3), "num_min"),
        ((2, 12, 3, 0), "num_e"),
    ],
)
def test_numbers_below_1_are_an_error(sizes, message):
    with pytest.raises(ValueError, match=f"{message}.* must be at least 1"):
        pgjax.shuffled_minibatches(jax.random.key(0), *sizes)
    with pytest.raises(ValueError, match="num_shards=0"):
        pgjax.to_shards(jnp.zeros((2, 4)), 0)


def test_leaves_of_different_length_are_an_error():
    with pytest.raises(AssertionError):
        pgjax.to_shards({"a": jnp.zeros((2, 4)), "b": jnp.zeros((3, 4))}, 2)
