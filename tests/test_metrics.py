import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import tabular


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


@pytest.mark.parametrize("where", ["value", "target"])
def test_explained_variance_passes_nan_on(where):
    arrays = {"value": jnp.ones(2), "target": jnp.array([1.0, 2.0])}
    arrays[where] = jnp.array([jnp.nan, 2.0])
    assert jnp.isnan(pgjax.explained_variance(**arrays))


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


def test_both_forms_of_the_approximate_kl_have_one_expectation(x64, rng):
    old, new = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(2, 6))))
    plain = pgjax.approximate_kl(new, old, nonnegative=False)
    np.testing.assert_allclose(plain, old - new, rtol=1e-12)
    assert (plain < 0).any()
    never = pgjax.approximate_kl(new, old)
    np.testing.assert_allclose((jnp.exp(old) * plain).sum(), (jnp.exp(old) * never).sum(), rtol=1e-12)
    np.testing.assert_array_equal(pgjax.approximate_kl(new, old, nonnegative=True), never)


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


def pytree(rng, *batch):
    return {"w": jnp.asarray(rng.normal(size=(*batch, 3, 2))), "b": [jnp.asarray(rng.normal(size=batch))]}


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_the_cosine_is_that_of_the_flat_vectors(x64, rng):
    a, b = pytree(rng), pytree(rng)
    expected = flat(a) @ flat(b) / np.linalg.norm(flat(a)) / np.linalg.norm(flat(b))
    np.testing.assert_allclose(pgjax.gradient_cosine(a, b), expected, rtol=1e-12)


@pytest.mark.parametrize("scales", [(1.0, -1.0), (1e-30, -1.0), (1e30, -1e30), (1e-36, -1e-36), (5.0, 0.0)])
def test_the_cosine_knows_directions_only(scales, rng):
    a = jax.tree.map(lambda x: x.astype(jnp.float32), pytree(rng))
    first, second = (jax.tree.map(lambda x, scale=scale: scale * x, a) for scale in scales)
    expected = -1.0 if scales[1] else 0.0
    np.testing.assert_allclose(pgjax.gradient_cosine(first, second), expected, rtol=1e-5)
    np.testing.assert_allclose(pgjax.gradient_cosine(second, first), expected, rtol=1e-5)


def test_the_cosine_of_different_structures_is_refused(rng):
    with pytest.raises(AssertionError):
        pgjax.gradient_cosine(pytree(rng), pytree(rng)["w"])
    with pytest.raises(AssertionError):
        pgjax.gradient_cosine(pytree(rng, 1), pytree(rng, 2))


@pytest.mark.parametrize("num", [2, 5])
def test_the_noise_scale_is_the_one_of_mccandlish(num, x64, rng):
    """Their appendix A.1 to the letter: small batches of b samples, and one of K b."""
    small, big = 16, 16 * num
    gradients = jax.tree.map(lambda x: x + 1.0, pytree(rng, num))
    each = np.stack([flat(jax.tree.map(lambda x, i=i: x[i], gradients)) for i in range(num)])
    square_small, square_big = (each**2).sum(1).mean(), (each.mean(0) ** 2).sum()
    found = pgjax.gradient_noise_scale(gradients, batch_size=small)
    squared_norm = (big * square_big - small * square_small) / (big - small)
    trace = (square_small - square_big) / (1 / small - 1 / big)
    np.testing.assert_allclose(found, (squared_norm, trace, trace / squared_norm), rtol=1e-10)


def test_the_parts_of_the_noise_scale_are_unbiased(x64):
    """The means over 20,000 draws, within 3.29 standard errors: 99.9 % confidence each."""
    true, deviation = np.array([1.0, -0.5]), np.array([2.0, 3.0])
    noise = jax.random.normal(jax.random.key(0), (20_000, 4, 2)) * deviation[None, None] / np.sqrt(8.0)
    found = jax.vmap(lambda g: pgjax.gradient_noise_scale(g, batch_size=8))(true[None, None] + noise)
    for part, expected in ((found.squared_norm, (true**2).sum()), (found.trace, (deviation**2).sum())):
        error = part.std() / np.sqrt(20_000)
        assert abs(part.mean() - expected) < 3.29 * error
    assert (np.isinf(found.scale) == (found.squared_norm <= 0)).all()
    assert 0 < np.isinf(found.scale).mean() < 0.5


def test_the_noise_scale_without_noise_or_signal():
    same = pgjax.gradient_noise_scale(jnp.ones((3, 2)), batch_size=4)
    np.testing.assert_allclose(same, (2.0, 0.0, 0.0))
    nothing = pgjax.gradient_noise_scale(jnp.zeros((3, 2)), batch_size=4)
    np.testing.assert_array_equal(nothing, (0.0, 0.0, np.inf))
    with pytest.raises(ValueError, match="at least 2 minibatches"):
        pgjax.gradient_noise_scale(jnp.ones((1, 2)), batch_size=4)


@pytest.mark.parametrize("masked", [False, True])
def test_the_surrogate_improvement_is_the_mean_of_the_surplus_ratio_times_the_advantage(masked, x64, rng):
    new, old, advantage = rng.normal(size=(3, 5, 4))
    valid = np.arange(5)[:, None] < [5, 4, 2, 0]
    surplus = (np.exp(new - old) - 1) * advantage
    if masked:
        spoiled = (np.where(valid, x, bad) for x, bad in ((new, np.nan), (old, -1e30), (advantage, np.inf)))
        found, expected = pgjax.surrogate_improvement(*spoiled, valid), surplus[valid].mean()
    else:
        found, expected = pgjax.surrogate_improvement(new, old, advantage), surplus.mean()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_no_valid_sample_promises_nothing():
    zeros = jnp.zeros((2, 3))
    assert pgjax.surrogate_improvement(zeros, zeros, zeros + 1.0, jnp.zeros((2, 3), bool)) == 0.0


def test_the_surrogate_comes_true_in_the_limit_of_small_steps(x64):
    """On an exact problem: samples are all states and actions, weighed by how often they are met."""
    mdp = tabular.random_mdp(jax.random.key(0), 4, 3, 0.9)

    def apply(params, obs):
        return pgjax.Categorical(obs @ params)

    params = jax.random.normal(jax.random.key(1), (4, 3))
    step = tabular.policy_gradient(mdp, apply, params)
    old = tabular.policy_matrix(mdp, apply, params)
    weight = 12 * tabular.visitation(mdp, old)[:, None] * old / (1 - 0.9)  # a mean over 12 pairs follows
    ratios = []
    for size in (1.0, 0.1, 1e-4):
        new = params + size * step
        policy = tabular.policy_matrix(mdp, apply, new)
        promised = pgjax.surrogate_improvement(
            jnp.log(policy), jnp.log(old), weight * tabular.advantage(mdp, old)
        )
        gained = tabular.objective(mdp, apply, new) - tabular.objective(mdp, apply, params)
        ratios.append(float(pgjax.improvement_ratio(gained, promised)))
    errors = [abs(ratio - 1) for ratio in ratios]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.01
    assert errors[-1] < 1e-3


@pytest.mark.parametrize(
    ("improvement", "surrogate", "expected"),
    [(1.0, 2.0, 0.5), (-1.0, 2.0, -0.5), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1e-45, 0.0), (3, 2, 1.5)],
)
def test_the_improvement_ratio_is_guarded(improvement, surrogate, expected):
    assert pgjax.improvement_ratio(improvement, surrogate) == expected
