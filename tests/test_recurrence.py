import functools

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

import pgjax
from pgjax.estimators import recurrence

LONG = 100_000
SIGNS = ("constant", "uniform", "mixed", "alternating")
GAMMAS = (0.9, 0.999, 1.0)
COLUMNS = [(sign, gamma) for sign in SIGNS for gamma in GAMMAS]


@functools.cache
def long_inputs():
    """x and decay, rounded to float32, and what the oracle makes of them in float64; a case a column."""
    rng = np.random.default_rng(0)
    rewards = {
        "constant": np.full(LONG, 0.1),
        "uniform": rng.uniform(size=LONG),
        "mixed": rng.normal(size=LONG),
        "alternating": np.where(np.arange(LONG) % 2, -1.0, 1.0) + 1e-3 * rng.normal(size=LONG),
    }
    x = np.stack([rewards[sign] for sign, _ in COLUMNS], 1).astype(np.float32)
    decay = np.broadcast_to(np.array([gamma for _, gamma in COLUMNS], np.float32), x.shape)
    return x, decay, oracles.recurrence(x, decay, 0.0)


@functools.cache
def long_run():
    """The library in float32 and the oracle in float64, fed the same rounded inputs."""
    x, decay, exact = long_inputs()
    y = pgjax.reverse_recurrence(x, decay, 0.0)
    assert y.dtype == jnp.float32
    return np.asarray(y, np.float64), exact


@pytest.mark.parametrize("column", range(len(COLUMNS)), ids=["-".join(map(str, c)) for c in COLUMNS])
def test_float32_error_stays_below_1e_5_of_the_largest_value_over_100000_steps(column):
    y, exact = (a[:, column] for a in long_run())
    assert np.abs(y - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("column", range(len(COLUMNS)), ids=["-".join(map(str, c)) for c in COLUMNS])
def test_the_error_of_a_single_sequence_stays_below_1e_5_too(column):
    """On CPUs it has a form of its own."""
    x, decay, exact = (a[:, column] for a in long_inputs())
    y = pgjax.reverse_recurrence(x, decay, 0.0)
    assert y.dtype == jnp.float32
    assert np.abs(y - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("length", "gamma", "bound"),
    [(LONG, 0.9999, 5e-5), (10 * LONG, 1.0, 1e-5)],  # γ¹²⁸ is rounded; many groups, joined in blocks
)
def test_the_error_of_a_single_sequence_where_it_is_largest(length, gamma, bound):
    x, decay = np.full(length, 0.1, np.float32), np.full(length, gamma, np.float32)
    powers = float(decay[0]) ** np.arange(length)
    exact = float(x[0]) * np.cumsum(powers)[::-1]
    assert np.abs(pgjax.reverse_recurrence(x, decay, 0.0) - exact).max() < bound * exact.max()


def test_a_program_with_a_single_sequence_can_be_exported():
    """It asks XLA for nothing that other versions of it might not know."""
    x, decay = jnp.linspace(-1.0, 1.0, 2000), jnp.full(2000, 0.9)
    program = jax.jit(lambda x, decay: pgjax.reverse_recurrence(x, decay, 0.5))
    np.testing.assert_array_equal(jax.export.export(program)(x, decay).call(x, decay), program(x, decay))


def test_a_single_sequence_runs_without_jit():
    x = jnp.arange(1600.0)
    expected = pgjax.reverse_recurrence(x, jnp.full(1600, 0.5), 1.0)
    with jax.disable_jit():
        np.testing.assert_allclose(pgjax.reverse_recurrence(x, jnp.full(1600, 0.5), 1.0), expected, rtol=1e-6)


@pytest.mark.parametrize("length", [1600, 1601])
def test_a_single_sequence_can_be_one_of_a_device(length):
    """`shard_map` follows what differs between devices: a loop must begin with what it goes on with."""
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    over, x = jax.sharding.PartitionSpec(None, "i"), jnp.ones((length, 1))

    def solve(x):
        return pgjax.reverse_recurrence(x, 0.5 * x, 0.0 * x[0])

    found = jax.jit(jax.shard_map(solve, mesh=mesh, in_specs=over, out_specs=over))(x)
    np.testing.assert_array_equal(found, solve(x))


# In float32 one group with a rest and without, two unequal ones, three with a rest.
@pytest.mark.parametrize("length", [1025, 1600, 2064, 5010])
@pytest.mark.parametrize("shape", [(), (1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_single_sequence_of_any_shape_equals_the_loop(length, shape, dtype, x64, rng):
    x, decay = rng.normal(size=(2, length, *shape)).astype(dtype)
    decay = np.where(rng.uniform(size=decay.shape) < 0.01, 0.0, np.clip(decay, -1.1, 1.0)).astype(dtype)
    init = np.full(shape, 30.0, dtype)
    y = pgjax.reverse_recurrence(x, decay, init)
    chex.assert_shape(y, (length, *shape))
    assert y.dtype == dtype
    tolerance = 1e-11 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(y, oracles.recurrence(x, decay, init), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("axes", [(0, 0, 0), (1, None, None), (None, 1, None), (None, None, 0)])
def test_single_sequences_can_be_mapped_and_differentiated(axes, x64, rng):
    length, copies = 1031, 3
    arrays = rng.normal(size=length), rng.uniform(0.5, 0.99, size=length), np.asarray(0.7)
    arrays = [
        a if axis is None else np.stack([a, -a, 0.5 * a], axis) for a, axis in zip(arrays, axes, strict=True)
    ]
    mapped = jax.vmap(pgjax.reverse_recurrence, axes)(*arrays)
    tangents = [rng.normal(size=a.shape) for a in arrays]

    def directional(x, decay, init):
        return jax.vmap(pgjax.reverse_recurrence, axes)(x, decay, init).sum(1)

    found = jax.jvp(directional, tuple(arrays), tuple(tangents))[1]
    for i in range(copies):
        one, dot = (
            [a if axis is None else np.take(a, i, axis) for a, axis in zip(values, axes, strict=True)]
            for values in (arrays, tangents)
        )
        np.testing.assert_allclose(mapped[i], oracles.recurrence(*one), rtol=1e-11, atol=1e-12)
        eps = 1e-6
        ends = [oracles.recurrence(*(a + s * d for a, d in zip(one, dot, strict=True))) for s in (eps, -eps)]
        np.testing.assert_allclose(found[i], (ends[0] - ends[1]).sum() / (2 * eps), rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 1023, 1024, 1025, 1026, 1027, 1028, 1029, 1030, 1031])
def test_every_length_around_the_switch_of_forms_equals_the_loop(length, x64, rng):
    x, decay = rng.normal(size=length), rng.uniform(0.5, 1.0, size=length)
    decay[rng.uniform(size=length) < 0.02] = 0.0
    y = pgjax.reverse_recurrence(x, decay, 3.0)
    np.testing.assert_allclose(y, oracles.recurrence(x, decay, 3.0), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_the_blocked_form_equals_the_plain_one_at_lengths_it_is_not_chosen_for(length, x64, rng):
    x, decay = jnp.asarray(rng.normal(size=(2, length, 3)))
    init = jnp.asarray(rng.normal(size=3)) if length > 1 else jnp.zeros(3)
    plain, blocked = recurrence._scan(x, decay, init), recurrence._blocked_scan(x, decay, init)
    np.testing.assert_allclose(blocked, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [5, 1031])
def test_gradients_in_x_decay_and_init_equal_finite_differences(length, x64, rng):
    x, decay = rng.normal(size=length), rng.uniform(0.5, 0.99, size=length)
    weight = rng.normal(size=length)  # so that no entry's gradient is hidden by symmetry
    check_grads(
        lambda x, d, i: (weight * pgjax.reverse_recurrence(x, d, i)).sum(), (x, decay, 0.7), 1, eps=1e-6
    )


@pytest.mark.parametrize("length", [5, 1031])
@pytest.mark.parametrize("decay_shape", [(), (3,), (3, 2)])
@pytest.mark.parametrize("init_shape", [(), (3, 1), (3, 2)])
def test_decay_and_init_broadcast_against_trailing_axes(length, decay_shape, init_shape, x64, rng):
    x = rng.normal(size=(length, 3, 2))
    decay, init = rng.uniform(size=(length, *decay_shape)), rng.normal(size=init_shape)
    full = np.broadcast_to(decay.reshape(length, *decay_shape, *(1,) * (2 - len(decay_shape))), x.shape)
    y = pgjax.reverse_recurrence(x, decay, init)
    np.testing.assert_allclose(y, oracles.recurrence(x, full, init), rtol=1e-11, atol=1e-12)


def test_x_of_lower_rank_than_decay_gains_its_trailing_axes(x64, rng):
    x, decay = rng.normal(size=4), rng.uniform(size=(4, 3))
    expected = oracles.recurrence(np.broadcast_to(x[:, None], (4, 3)), decay, 0.0)
    np.testing.assert_allclose(pgjax.reverse_recurrence(x, decay, 0.0), expected, rtol=1e-12)


@pytest.mark.parametrize("length", [5, 1031])
def test_a_zero_decay_stops_everything_that_comes_after_it(length):
    x = jnp.ones(length)
    decay = jnp.ones(length).at[2].set(0.0)
    np.testing.assert_array_equal(pgjax.reverse_recurrence(x, decay, 1e30)[:3], [3.0, 2.0, 1.0])


def test_integers_become_floats():
    y = pgjax.reverse_recurrence(jnp.arange(3), jnp.full(3, 0.5), 0)
    np.testing.assert_array_equal(y, [1.0, 2.0, 2.0])
    assert y.dtype == jnp.float32


def test_unequal_time_axes_are_an_error():
    with pytest.raises(AssertionError):
        pgjax.reverse_recurrence(jnp.ones(3), jnp.ones(4), 0.0)


def test_vmap_over_decay_equals_a_loop(x64):
    x, gammas = jnp.arange(6.0), jnp.array([0.0, 0.5, 1.0])
    batched = jax.vmap(lambda g: pgjax.reverse_recurrence(x, jnp.full(6, g), 2.0))(gammas)
    for row, gamma in zip(batched, gammas, strict=True):
        np.testing.assert_allclose(row, oracles.recurrence(x, np.full(6, gamma), 2.0), rtol=1e-12)
