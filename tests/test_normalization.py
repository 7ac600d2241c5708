import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pgjax


def test_merged_moments_are_those_of_all_samples_together(x64, rng):
    batches = [{"a": rng.normal(3, 2, size=(5, 4, 3)), "b": rng.normal(size=(5, 4))} for _ in range(3)]
    moments = pgjax.init_moments({"a": jnp.zeros(3), "b": jnp.zeros(())})
    for batch in batches:
        moments = pgjax.update_moments(moments, batch)
    for name in ("a", "b"):
        whole = np.stack([b[name] for b in batches]).reshape(60, *batches[0][name].shape[2:])
        np.testing.assert_allclose(moments.mean[name], whole.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.variance[name], whole.var(0), rtol=1e-12)
    assert moments.num_samples == 60


def test_batches_of_any_size_and_rank_merge_to_the_same(x64, rng):
    samples = rng.normal(size=(12, 2))
    at_once = pgjax.update_moments(pgjax.init_moments(jnp.zeros(2)), samples)
    moments = pgjax.init_moments(jnp.zeros(2))
    for batch in (samples[0], samples[1:4], samples[4:].reshape(2, 4, 2)):
        moments = pgjax.update_moments(moments, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), moments, at_once)


def test_float32_moments_survive_a_large_offset(rng):
    batches = (rng.normal(size=(20, 500)) + 1e4).astype(np.float32)
    moments = pgjax.init_moments(jnp.zeros(()))
    for batch in batches:
        moments = pgjax.update_moments(moments, batch)
    exact = batches.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(moments.variance, exact.var(), rtol=1e-2)


@pytest.mark.parametrize("shape", [(), (4,), (5, 4)])
def test_normalize_shifts_scales_and_clips_every_sample_alike(shape, x64, rng):
    data = rng.normal([1.0, -5.0, 0.0], [2.0, 0.1, 30.0], size=(1000, 3))
    moments = pgjax.update_moments(pgjax.init_moments(jnp.zeros(3)), data)
    x = rng.normal([1.0, -5.0, 0.0], [2.0, 0.1, 30.0], size=(*shape, 3))
    expected = np.clip((x - data.mean(0)) / data.std(0), -1.5, 1.5)
    np.testing.assert_allclose(pgjax.normalize(moments, x, clip=1.5), expected, rtol=1e-5)


def test_before_any_data_normalize_is_the_identity_up_to_the_clip():
    moments = pgjax.init_moments({"x": jnp.zeros(2)})
    x = jnp.array([[0.5, -3.0], [100.0, -100.0]])
    np.testing.assert_allclose(
        pgjax.normalize(moments, {"x": x})["x"], [[0.5, -3.0], [10.0, -10.0]], rtol=1e-6
    )


def test_what_never_varied_stays_finite():
    moments = pgjax.update_moments(pgjax.init_moments(jnp.zeros(())), jnp.full(10, 3.0))
    assert pgjax.normalize(moments, jnp.array(3.0)) == 0.0
    assert pgjax.normalize(moments, jnp.array(4.0)) == 10.0


def test_integer_observations_become_floats():
    moments = pgjax.update_moments(pgjax.init_moments(jnp.zeros(2, int)), jnp.array([[0, 1], [2, 5]]))
    np.testing.assert_array_equal(moments.mean, [1.0, 3.0])
    assert pgjax.normalize(moments, jnp.array([[1, 3]])).dtype == jnp.float32


# reward scaling


@st.composite
def episodes(draw):
    """`(reward, terminated, truncated)`, `[6, 2]`."""
    ends = np.array(draw(st.lists(st.sampled_from(range(4)), min_size=12, max_size=12))).reshape(6, 2)
    reward = np.random.default_rng(draw(st.integers(0, 10_000))).normal(1.0, 1.0, size=(6, 2))
    return reward, ends % 2 == 1, ends >= 2


@given(episodes(), st.sampled_from([0.9, 1.0]))
def test_the_scale_is_the_spread_of_the_discounted_return_so_far(x64, window, gamma):
    scaling = pgjax.update_reward_scaling(pgjax.init_reward_scaling(2), *window, gamma=gamma)
    past = oracles.per_column(oracles.return_so_far, *window, gamma=gamma)
    np.testing.assert_allclose(scaling.moments.mean, past.mean(), rtol=1e-10)
    np.testing.assert_allclose(scaling.moments.variance, past.var(), rtol=1e-10)
    ended = window[1][-1] | window[2][-1]
    np.testing.assert_allclose(scaling.return_so_far, np.where(ended, 0.0, past[-1]), rtol=1e-10)


@given(episodes())
def test_several_windows_equal_one_long_one(x64, window):
    whole = pgjax.update_reward_scaling(pgjax.init_reward_scaling(2), *window, gamma=0.9)
    parts = pgjax.init_reward_scaling(2)
    for piece in (slice(0, 2), slice(2, 4), slice(4, 6)):
        parts = pgjax.update_reward_scaling(parts, *(x[piece] for x in window), gamma=0.9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), parts, whole)


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_the_terminal_reward_is_counted_before_the_return_starts_anew(flag):
    """Episodes of two steps that pay at the end: returns so far are 0, 5, 0, 5; a reset too early sees 0s."""
    flags = {"terminated": jnp.zeros((4, 1), bool), "truncated": jnp.zeros((4, 1), bool)}
    flags[flag] = jnp.array([[False], [True], [False], [True]])
    reward = jnp.array([[0.0], [5.0], [0.0], [5.0]])
    scaling = pgjax.update_reward_scaling(pgjax.init_reward_scaling(1), reward, **flags, gamma=0.9)
    np.testing.assert_allclose(scaling.moments.variance, 6.25, rtol=1e-6)
    np.testing.assert_array_equal(scaling.return_so_far, [0.0])


def test_scale_reward_divides_without_a_shift_and_clips(x64):
    moments = pgjax.RunningMoments(jnp.array(9.0), jnp.array(100.0), jnp.array(4.0))
    scaling = pgjax.RewardScaling(moments, jnp.zeros(1))
    scaled = pgjax.scale_reward(scaling, jnp.array([3.0, -3.0, 50.0]), clip=2.0)
    np.testing.assert_allclose(scaled, [1.5, -1.5, 2.0], rtol=1e-8)
