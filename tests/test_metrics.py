import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax


@pytest.mark.parametrize("masked", [False, True])
def test_explained_variance_is_one_minus_the_share_left(masked, x64, rng):
    value, target = rng.normal(2.0, 3.0, size=(2, 5, 4))
    valid = np.arange(5)[:, None] < [5, 4, 2, 0]
    v, t = (value[valid], target[valid]) if masked else (value, target)
    actual = pgjax.explained_variance(
        np.where(valid, value, 99.0) if masked else value, target, valid if masked else None
    )
    np.testing.assert_allclose(actual, 1 - np.var(t - v) / np.var(t), rtol=1e-12)


@pytest.mark.parametrize(
    ("value", "target", "expected"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], 1.0),
        ([6.0, 7.0, 9.0], [1.0, 2.0, 4.0], 1.0),  # an offset is variance of nothing
        ([0.0, 0.0, 0.0], [1.0, 2.0, 4.0], 0.0),
        ([-1.0, -2.0, -4.0], [1.0, 2.0, 4.0], -3.0),
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], 0.0),
    ],
    ids=["right", "shifted", "constant value", "mirrored", "constant target"],
)
def test_explained_variance_of_simple_critics(value, target, expected):
    np.testing.assert_allclose(
        pgjax.explained_variance(jnp.array(value), jnp.array(target)), expected, atol=1e-6
    )


def test_the_approximate_kl_has_the_exact_kl_as_its_expectation(x64, rng):
    old, new = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(2, 6))))
    estimate = pgjax.approximate_kl(new, old)
    assert (estimate >= 0).all()
    np.testing.assert_allclose(
        (jnp.exp(old) * estimate).sum(), (jnp.exp(old) * (old - new)).sum(), rtol=1e-12
    )


def test_the_approximate_kl_of_a_small_step_is_half_its_square_in_float32():
    step = jnp.array([1e-3, -1e-3])
    np.testing.assert_allclose(pgjax.approximate_kl(step, jnp.zeros(2)), 0.5e-6, rtol=0.1)


def test_clip_fraction_counts_the_ratios_outside():
    ratio = jnp.array([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0])
    outside = pgjax.clip_fraction(jnp.log(ratio), jnp.zeros(7), clip_eps=0.2)
    np.testing.assert_array_equal(outside, [1, 1, 0, 0, 0, 1, 1])
    assert outside.dtype == jnp.float32


@pytest.mark.parametrize(
    ("log_ratio", "expected"),
    [
        ([3.0, 3.0, 3.0], 3.0),
        ([500.0, 500.0, -500.0], 2.0),
        ([0.0, -1e30, -np.inf], 1.0),
        (np.log([1.0, 2.0, 3.0]), 36 / 14),
    ],
)
def test_effective_sample_size_depends_on_relative_ratios_only(log_ratio, expected):
    np.testing.assert_allclose(pgjax.effective_sample_size(jnp.array(log_ratio)), expected, rtol=1e-6)


@pytest.mark.parametrize(("value", "num"), [(2.0, 4), (0.1, 7), (-123.456, 1000)])
def test_a_target_that_does_not_vary_is_not_explained(value, num):
    assert pgjax.explained_variance(jnp.zeros(num), jnp.full(num, value)) == 0.0
