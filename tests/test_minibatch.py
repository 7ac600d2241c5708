import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pgjax

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


def test_every_place_gets_every_sample_equally_often():
    """2400 shuffles of 4: each of 16 counts is 600 ± 6σ = 600 ± 127, once in 3e7 seeds otherwise."""
    order = pgjax.shuffled_minibatches(jax.random.key(0), 2, 4, 2, 1200)
    places = np.asarray(order).reshape(1200, 2, 2, 2).swapaxes(1, 2).reshape(-1, 4)
    counts = np.stack([np.bincount(places[:, i], minlength=4) for i in range(4)])
    assert (np.abs(counts - 600) < 127).all()


def test_shards_hold_the_steps_of_their_own_environments_environment_before_time():
    time, env = np.meshgrid(np.arange(3), np.arange(4), indexing="ij")
    tree = {"time": jnp.asarray(time), "pair": jnp.stack([time, env], -1)}
    shards = pgjax.to_shards(tree, 2)
    np.testing.assert_array_equal(shards["time"], [[0, 1, 2, 0, 1, 2]] * 2)
    np.testing.assert_array_equal(shards["pair"][..., 1], [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3]])
    np.testing.assert_array_equal(shards["pair"][..., 0], shards["time"])


def test_a_minibatch_takes_from_every_shard_its_own_samples(indices):
    shard, sample = np.meshgrid(np.arange(SHARDS), np.arange(SIZE), indexing="ij")
    tree = {"id": jnp.asarray(SIZE * shard + sample), "wide": jnp.asarray(np.stack([shard, sample], -1))}
    seen = []
    for row in indices[:MINIBATCHES]:
        batch = pgjax.take_minibatch(tree, jnp.asarray(row))
        np.testing.assert_array_equal(batch["id"] // SIZE, np.broadcast_to([[0], [1]], row.shape))
        np.testing.assert_array_equal(batch["id"] % SIZE, row)
        np.testing.assert_array_equal(batch["wide"][..., 1], row)
        seen.append(np.asarray(batch["id"]))
    np.testing.assert_array_equal(np.sort(np.concatenate(seen, None)), np.arange(SHARDS * SIZE))


def test_environments_that_do_not_split_into_the_shards_are_an_error():
    with pytest.raises(ValueError, match="num_shards=3 must divide num_envs=4"):
        pgjax.to_shards(jnp.zeros((2, 4)), 3)


def test_shards_that_do_not_split_into_the_minibatches_are_an_error():
    with pytest.raises(ValueError, match="num_minibatches=5 must divide"):
        pgjax.shuffled_minibatches(jax.random.key(0), 2, 12, 5)


def test_leaves_of_different_length_are_an_error():
    with pytest.raises(AssertionError):
        pgjax.to_shards({"a": jnp.zeros((2, 4)), "b": jnp.zeros((3, 4))}, 2)
