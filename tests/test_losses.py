import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax

SIZE = 6


@pytest.fixture
def sample(rng):
    """`(log_prob, old_log_prob, advantage)` with ratios well outside and well inside [.8, 1.2]."""
    old = rng.normal(size=SIZE)
    return old + np.log([0.5, 0.5, 0.9, 1.1, 1.9, 1.9]), old, np.array([2.0, -2.0, 1.0, -1.0, 3.0, -3.0])


def close(actual, desired, rtol=1e-12):
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=1e-14)


def elementwise_gradient(loss, x):
    return jax.grad(lambda x: loss(x).sum())(x)


def test_score_function_loss_and_its_gradient(sample, x64):
    log_prob, _, weight = sample
    close(pgjax.score_function_loss(log_prob, weight), -log_prob * weight)
    close(elementwise_gradient(lambda x: pgjax.score_function_loss(x, weight), log_prob), -weight)


def test_surrogate_loss_and_its_gradient(sample, x64):
    log_prob, old, advantage = sample
    expected = -np.exp(log_prob - old) * advantage
    close(pgjax.surrogate_loss(log_prob, old, advantage), expected)
    close(elementwise_gradient(lambda x: pgjax.surrogate_loss(x, old, advantage), log_prob), expected)


def test_clipped_surrogate_loss_and_its_gradient(sample, x64):
    log_prob, old, advantage = sample
    ratio = np.exp(log_prob - old)
    # ratio ×  advantage: pessimistic on both sides
    expected = [-0.5 * 2, 0.8 * 2, -0.9, 1.1, -1.2 * 3, 1.9 * 3]
    moves = [True, False, True, True, False, True]
    close(pgjax.clipped_surrogate_loss(log_prob, old, advantage, clip_eps=0.2), expected)
    gradient = elementwise_gradient(
        lambda x: pgjax.clipped_surrogate_loss(x, old, advantage, clip_eps=0.2), log_prob
    )
    close(gradient, np.where(moves, -ratio * advantage, 0.0))


def test_without_a_clip_the_clipped_surrogate_is_the_surrogate(sample, x64):
    for function in (lambda f: f, jax.jacobian):
        plain = function(pgjax.surrogate_loss)(*sample)
        clipped = function(lambda *x: pgjax.clipped_surrogate_loss(*x, clip_eps=jnp.inf))(*sample)
        close(clipped, plain)


@pytest.mark.parametrize(
    "loss", [pgjax.surrogate_loss, lambda *x: pgjax.clipped_surrogate_loss(*x, clip_eps=0.2)]
)
def test_the_first_step_of_a_surrogate_is_that_of_the_score_function(loss, sample, x64):
    log_prob, _, advantage = sample
    first = elementwise_gradient(lambda x: loss(x, log_prob, advantage), log_prob)
    close(first, elementwise_gradient(lambda x: pgjax.score_function_loss(x, advantage), log_prob))


def test_the_clip_range_can_be_mapped_and_zero_clips_all_but_losses(sample, x64):
    log_prob, old, advantage = sample
    eps = jnp.array([0.0, 0.2, 10.0])
    rows = jax.vmap(lambda e: pgjax.clipped_surrogate_loss(log_prob, old, advantage, clip_eps=e))(eps)
    close(rows[0], -np.minimum(np.exp(log_prob - old) * advantage, advantage))
    close(rows[2], pgjax.surrogate_loss(log_prob, old, advantage))


def test_all_action_loss_is_the_expected_value_with_q_held_fixed(rng, x64):
    logits, q = rng.normal(size=(2, 5, 3))
    close(pgjax.all_action_loss(jax.nn.softmax(logits), q), -(np.asarray(jax.nn.softmax(logits)) * q).sum(-1))
    # the expectation of the score-function gradient, taken exactly
    gradient = jax.grad(lambda x: pgjax.all_action_loss(jax.nn.softmax(x), q).sum())(logits)
    p = np.asarray(jax.nn.softmax(logits))
    close(gradient, -p * (q - (p * q).sum(-1, keepdims=True)), rtol=1e-10)


def test_squared_error_loss_and_its_gradient(rng, x64):
    value, target = rng.normal(size=(2, SIZE))
    close(pgjax.squared_error_loss(value, target), (value - target) ** 2 / 2)
    close(elementwise_gradient(lambda v: pgjax.squared_error_loss(v, target), value), value - target)


@pytest.mark.parametrize(
    ("value", "target", "expected", "gradient"),
    [  # old value 0, ε = .5
        (0.3, 1.0, 0.5 * 0.7**2, -0.7),  # inside: the squared error
        (2.0, 2.0, 0.5 * 1.5**2, 0.0),  # outside and right: held back by its clipped self
        (2.0, -1.0, 0.5 * 3.0**2, 3.0),  # outside and worse than clipped: moves
        (-2.0, -5.0, 0.5 * 4.5**2, 0.0),
    ],
)
def test_clipped_value_loss_is_the_larger_of_two_errors(value, target, expected, gradient, x64):
    def loss(v):
        return pgjax.clipped_value_loss(v, 0.0, target, clip_eps=0.5)

    close(loss(value), expected)
    close(jax.grad(loss)(value), gradient)


def test_clipped_value_loss_without_a_clip_is_the_squared_error(rng, x64):
    value, old, target = rng.normal(size=(3, SIZE))
    loss = pgjax.clipped_value_loss(value, old, target, clip_eps=jnp.inf)
    close(loss, pgjax.squared_error_loss(value, target))


def test_expected_sarsa_loss_and_its_gradient(rng, x64):
    q, next_q = rng.normal(size=(2, SIZE, 3))
    probs = np.asarray(jax.nn.softmax(rng.normal(size=(SIZE, 3))))
    action, reward, terminated = rng.integers(0, 3, SIZE), rng.normal(size=SIZE), np.arange(SIZE) % 2 == 0
    target = reward + 0.9 * ~terminated * (probs * next_q).sum(-1)
    error = q[np.arange(SIZE), action] - target

    def loss(q):
        return pgjax.expected_sarsa_loss(q, action, reward, next_q, probs, terminated, gamma=0.9)

    close(loss(q), error**2 / 2)
    close(elementwise_gradient(loss, q), np.eye(3)[action] * error[:, None])


def test_nan_behind_a_termination_does_not_leak_into_the_target():
    q, nan = jnp.ones((1, 2)), jnp.full((1, 2), jnp.nan)
    arguments = jnp.zeros(1, int), jnp.ones(1), nan, jnp.full((1, 2), 0.5), jnp.ones(1, bool)

    def loss(q):
        return pgjax.expected_sarsa_loss(q, *arguments, gamma=0.9).sum()

    assert loss(q) == 0.0
    assert np.isfinite(jax.grad(loss)(q)).all()


VECTOR, TABLE = jnp.linspace(-1.0, 1.0, SIZE), jnp.linspace(-1.0, 1.0, SIZE * 3).reshape(SIZE, 3)
STOPPED = {  # loss, arguments, those that are constants
    "score_function_loss": (pgjax.score_function_loss, (VECTOR, VECTOR + 0.1), (1,)),
    "surrogate_loss": (pgjax.surrogate_loss, (VECTOR, VECTOR + 0.1, VECTOR + 0.2), (1, 2)),
    "clipped_surrogate_loss": (
        lambda *x: pgjax.clipped_surrogate_loss(*x, clip_eps=0.2),
        (VECTOR, VECTOR + 0.1, VECTOR + 0.2),
        (1, 2),
    ),
    "all_action_loss": (pgjax.all_action_loss, (jax.nn.softmax(TABLE), TABLE), (1,)),
    "squared_error_loss": (pgjax.squared_error_loss, (VECTOR, VECTOR + 0.1), (1,)),
    "clipped_value_loss": (
        lambda *x: pgjax.clipped_value_loss(*x, clip_eps=0.2),
        (VECTOR, VECTOR + 0.1, VECTOR + 0.5),
        (1, 2),
    ),
    "expected_sarsa_loss": (
        lambda q, r, n, p: pgjax.expected_sarsa_loss(
            q, jnp.zeros(SIZE, int), r, n, p, jnp.zeros(SIZE, bool), gamma=0.9
        ),
        (TABLE, VECTOR, TABLE + 1.0, jax.nn.softmax(TABLE)),
        (1, 2, 3),
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_targets_advantages_and_old_log_probs_are_constants_and_the_first_argument_is_not(name):
    loss, arguments, constants = STOPPED[name]
    gradients = jax.grad(lambda *x: loss(*x).sum(), tuple(range(len(arguments))))(*arguments)
    assert (np.asarray(gradients[0]) != 0).any()
    for i in constants:
        np.testing.assert_array_equal(gradients[i], 0.0)


@pytest.mark.parametrize("name", STOPPED)
def test_losses_are_elementwise(name):
    loss, arguments, _ = STOPPED[name]
    whole = loss(*arguments)
    assert whole.shape == (SIZE,)
    assert whole.dtype == jnp.float32


def test_importance_ratios_of_any_size_give_no_nan():
    log_prob, old = jnp.array([0.0, -200.0, 50.0]), jnp.array([-50.0, 0.0, -30.0])
    for advantage in (-1.0, 0.0, 1.0):
        loss = pgjax.clipped_surrogate_loss(log_prob, old, jnp.full(3, advantage), clip_eps=0.2)
        assert np.isfinite(loss).all()
