import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import pgjax

KEY = jax.random.key(0)
Q = jnp.array([[1.0, 3.0, 2.0], [5.0, 5.0, -1.0], [-3.0, -2.0, -1.0]])
MASK = jnp.array([[True, False, True], [False, True, True], [True, True, True]])

# ε-greedy


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_epsilon_greedy_is_the_best_action_and_chance(epsilon, mask):
    policy = pgjax.epsilon_greedy(Q, mask, epsilon=epsilon)
    allowed = np.ones((3, 3), bool) if mask is None else np.asarray(mask)
    best = [1, 0, 2] if mask is None else [2, 1, 2]
    expected = epsilon * allowed / allowed.sum(-1, keepdims=True) + (1 - epsilon) * np.eye(3)[best]
    np.testing.assert_allclose(policy.probs, expected, rtol=1e-6)
    if epsilon < 1:
        np.testing.assert_array_equal(policy.mode(), best)


def test_epsilon_greedy_draws_what_it_says():
    """χ² of 6,000 draws, p above 1e-4; the key is fixed."""
    policy = pgjax.epsilon_greedy(jnp.broadcast_to(Q[0], (6_000, 3)), epsilon=0.3)
    action, log_prob = policy.sample_and_log_prob(KEY)
    counts = np.bincount(action, minlength=3)
    assert stats.chisquare(counts, 6_000 * np.array([0.1, 0.8, 0.1])).pvalue > 1e-4
    np.testing.assert_allclose(np.exp(log_prob), np.array([0.1, 0.8, 0.1])[action], rtol=1e-5)


def test_without_chance_a_greedy_action_is_certain_and_all_stays_finite():
    policy = pgjax.epsilon_greedy(Q, MASK, epsilon=0.0)
    actions = jax.vmap(policy.sample)(jax.random.split(KEY, 100))
    np.testing.assert_array_equal(actions, np.broadcast_to([2, 1, 2], (100, 3)))
    assert np.isfinite(policy.log_probs).all()
    np.testing.assert_array_equal(policy.entropy(), 0.0)


def test_every_environment_may_have_its_own_epsilon_and_a_schedule_is_optaxs():
    schedule = optax.schedules.linear_schedule(1.0, 0.1, 10)
    epsilon = jnp.stack([schedule(step) for step in (0, 5, 20)])
    policy = pgjax.epsilon_greedy(Q, epsilon=epsilon)
    for i, chance in enumerate([1.0, 0.55, 0.1]):
        one = pgjax.epsilon_greedy(Q[i], epsilon=chance)
        np.testing.assert_allclose(policy.probs[i], one.probs, rtol=1e-6)


@pytest.mark.parametrize("value", [-np.inf, np.finfo(np.float32).min, np.finfo(np.float32).max])
def test_values_of_any_size_never_make_a_masked_action_the_best(value):
    q, mask = jnp.full((1, 3), value, jnp.float32), jnp.array([[False, True, True]])
    policy = pgjax.epsilon_greedy(q, mask, epsilon=0.5)
    np.testing.assert_allclose(policy.probs, [[0.0, 0.75, 0.25]], rtol=1e-6)


def test_expected_sarsa_at_epsilon_0_is_q_learning():
    action, reward, no = jnp.array([0, 1, 2]), jnp.ones(3), jnp.zeros(3, bool)
    probs = pgjax.epsilon_greedy(Q, epsilon=0.0).probs
    sarsa = pgjax.expected_sarsa_loss(Q, action, reward, Q, probs, no, gamma=0.9)
    np.testing.assert_allclose(sarsa, pgjax.q_learning_loss(Q, action, reward, Q, no, gamma=0.9), rtol=1e-6)


# noise


def test_gaussian_noise_is_normal_and_clipped():
    """Kolmogorov-Smirnov on 4,000 numbers, p above 1e-4; the key is fixed."""
    noise = np.asarray(pgjax.gaussian_noise(KEY, (2_000, 2), std=0.2))
    assert stats.kstest(noise.ravel() / 0.2, "norm").pvalue > 1e-4
    clipped = pgjax.gaussian_noise(KEY, (2_000, 2), std=0.2, noise_clip=0.3)
    np.testing.assert_array_equal(clipped, np.clip(noise, -np.float32(0.3), np.float32(0.3)))


@pytest.mark.parametrize("dt", [1.0, 0.25])
def test_ornstein_uhlenbeck_noise_has_the_variance_and_the_memory_that_it_says(dt):
    """20,000 independent chains: standard errors 1 % of the variance, 0.007 of the correlation; 5 σ."""
    theta, sigma = 0.4, 0.3
    keys = jax.random.split(KEY, 100)

    def step(noise, key):
        noise = pgjax.ornstein_uhlenbeck_noise(key, noise, theta=theta, sigma=sigma, dt=dt)
        return noise, noise

    last, chain = jax.lax.scan(step, jnp.zeros((20_000, 1)), keys)
    variance = sigma**2 / (theta * (2 - theta * dt))
    assert abs(np.var(last) / variance - 1) < 0.05
    correlation = np.corrcoef(chain[-4, :, 0], chain[-1, :, 0])[0, 1]
    assert abs(correlation - (1 - theta * dt) ** 3) < 0.035
    assert abs(np.var(chain[0]) / (sigma**2 * dt) - 1) < 0.05


def test_ornstein_uhlenbeck_noise_without_memory_is_gaussian_noise():
    noise = pgjax.ornstein_uhlenbeck_noise(KEY, jnp.full((4, 2), 7.0), theta=1.0, sigma=0.2)
    np.testing.assert_allclose(noise, pgjax.gaussian_noise(KEY, (4, 2), std=0.2), rtol=1e-5)


def test_noise_is_in_units_of_half_the_range_and_actions_stay_inside():
    low, high = jnp.array([-2.0, 0.0]), jnp.array([2.0, 1.0])
    action, noise = jnp.array([[0.0, 0.5], [1.9, 0.05]]), jnp.array([[0.1, -0.1], [0.2, -0.5]])
    np.testing.assert_allclose(
        pgjax.add_noise(action, noise, low, high), [[0.2, 0.45], [2.0, 0.0]], rtol=1e-6
    )
    np.testing.assert_allclose(pgjax.add_noise(action, noise, -1.0, 1.0)[0], [0.1, 0.4], rtol=1e-6)


def test_the_noise_of_td3s_targets_is_clipped_before_it_is_scaled():
    """Reference-page mistake 9: .2 and .5 are in units of half the range, here 2."""
    noise = pgjax.gaussian_noise(KEY, (10_000, 1), std=0.2, noise_clip=0.5)
    action = np.asarray(pgjax.add_noise(jnp.zeros((10_000, 1)), noise, -2.0, 2.0))
    assert np.abs(action).max() == 1.0
    assert abs(np.std(action) / 0.4 - 1) < 0.05


def test_float64_stays_float64(x64):
    assert pgjax.epsilon_greedy(jnp.zeros((2, 3)), epsilon=0.1).logits.dtype == jnp.float64
    assert pgjax.ornstein_uhlenbeck_noise(KEY, jnp.zeros(3)).dtype == jnp.float64
    assert pgjax.add_noise(jnp.zeros(3), jnp.zeros(3), -1.0, 1.0).dtype == jnp.float64


def test_values_and_masks_of_different_shape_are_an_error():
    with pytest.raises(AssertionError):
        pgjax.epsilon_greedy(Q, MASK[0], epsilon=0.1)
    with pytest.raises(AssertionError):
        pgjax.add_noise(jnp.zeros((2, 1)), jnp.zeros(2), -1.0, 1.0)
