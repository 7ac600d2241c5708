import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import pgjax
from pgjax.distributions import Categorical, DiagGaussian

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


@pytest.mark.parametrize("log_ratio", [100.0, 1e4])
def test_a_ratio_that_overflows_beyond_the_clip_has_no_slope(log_ratio):
    value, slope = jax.value_and_grad(
        lambda x: pgjax.clipped_surrogate_loss(x, jnp.zeros(()), jnp.ones(()), clip_eps=0.2)
    )(log_ratio)
    np.testing.assert_allclose(value, -1.2, rtol=1e-6)
    assert slope == 0.0


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "slope"), [(1.0, 2.0, -2.0), (-1.0, -2.0, -2.0), (0.1, 2.0, 0.0)]
)
def test_the_clip_range_can_be_differentiated(log_ratio, advantage, slope):
    """Beyond the bound 1 ± ε the loss is −(1 ± ε) A, within it knows no ε."""
    loss = lambda eps: pgjax.clipped_surrogate_loss(log_ratio, 0.0, advantage, clip_eps=eps)  # noqa: E731
    assert jax.grad(loss)(0.2) == slope


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_a_clip_range_that_is_no_number_is_seen(advantage):
    assert jnp.isnan(pgjax.clipped_surrogate_loss(3.0, 0.0, jnp.asarray(advantage), clip_eps=jnp.nan))


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


def test_the_target_is_a_constant_whatever_the_loss_of_the_error():
    """The same Q on both sides, and losses that do not stop gradients themselves."""
    q = jnp.array([1.0, 2.0])

    def slope(error_loss):
        def loss(q):
            return pgjax.sarsa_loss(q, 0, 0.5, q, 1, False, gamma=0.5, error_loss=error_loss)

        return jax.grad(loss)(q)

    close(slope(optax.losses.l2_loss), slope(pgjax.squared_error_loss))
    close(slope(optax.losses.huber_loss), slope(pgjax.huber_loss))


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


NUM_ACTIONS = 3


@pytest.fixture
def step(rng):
    """One step with a finite number of actions: Q(s, ·), the transition, two Q(s', ·), a policy, a'."""
    q, next_q, other_q = rng.normal(size=(3, SIZE, NUM_ACTIONS))
    probs = np.asarray(jax.nn.softmax(rng.normal(size=(SIZE, NUM_ACTIONS))), np.float64)
    probs /= probs.sum(-1, keepdims=True)
    action, next_action = rng.integers(0, NUM_ACTIONS, (2, SIZE))
    return q, action, rng.normal(size=SIZE), next_q, other_q, probs, next_action, np.arange(SIZE) % 2 == 0


def greedy(q):
    return np.eye(NUM_ACTIONS)[q.argmax(-1)]


def soft_value(q, probs, alpha):
    """Σ_a π (Q − α log π), in a loop."""
    return np.array(
        [
            sum(p * (x - alpha * np.log(p)) for p, x in zip(*row, strict=True))
            for row in zip(probs, q, strict=True)
        ]
    )


ONE_STEP = {  # the loss of q and γ, and V(s') in NumPy
    "sarsa": (
        lambda s, gamma: lambda q: pgjax.sarsa_loss(q, s[1], s[2], s[3], s[6], s[7], gamma=gamma),
        lambda s: s[3][np.arange(SIZE), s[6]],
    ),
    "expected_sarsa": (
        lambda s, gamma: lambda q: pgjax.expected_sarsa_loss(q, s[1], s[2], s[3], s[5], s[7], gamma=gamma),
        lambda s: (s[5] * s[3]).sum(-1),
    ),
    "q_learning": (
        lambda s, gamma: lambda q: pgjax.q_learning_loss(q, s[1], s[2], s[3], s[7], gamma=gamma),
        lambda s: s[3].max(-1),
    ),
    "double_q_learning": (
        lambda s, gamma: lambda q: pgjax.double_q_learning_loss(q, s[1], s[2], s[3], s[4], s[7], gamma=gamma),
        lambda s: s[3][np.arange(SIZE), s[4].argmax(-1)],
    ),
    "expected_soft_q": (
        lambda s, gamma: (
            lambda q: pgjax.expected_soft_q_loss(
                q[None], s[1], s[2], np.stack([s[3], s[4]])[:1], np.log(s[5]), s[7], gamma=gamma, alpha=0.3
            )[0]
        ),
        lambda s: soft_value(s[3], s[5], 0.3),
    ),
}


@pytest.mark.parametrize("gamma", [0.9, np.linspace(0.0, 1.0, SIZE)], ids=["one", "per sample"])
@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_losses_and_their_gradients(name, gamma, step, x64):
    loss, next_value = ONE_STEP[name][0](step, gamma), ONE_STEP[name][1](step)
    q, action, reward, *_, terminated = step
    error = q[np.arange(SIZE), action] - (reward + gamma * np.where(terminated, 0.0, next_value))
    close(loss(q), error**2 / 2, rtol=1e-10)
    close(elementwise_gradient(loss, q), np.eye(NUM_ACTIONS)[action] * error[:, None], rtol=1e-10)


def test_expected_sarsa_with_a_greedy_policy_is_q_learning(step, x64):
    q, action, reward, next_q, _, _, _, terminated = step
    expected = pgjax.expected_sarsa_loss(q, action, reward, next_q, greedy(next_q), terminated, gamma=0.9)
    close(pgjax.q_learning_loss(q, action, reward, next_q, terminated, gamma=0.9), expected)


def test_sarsa_with_the_greedy_action_is_q_learning(step, x64):
    q, action, reward, next_q, _, _, _, terminated = step
    sarsa = pgjax.sarsa_loss(q, action, reward, next_q, next_q.argmax(-1), terminated, gamma=0.9)
    close(pgjax.q_learning_loss(q, action, reward, next_q, terminated, gamma=0.9), sarsa)


def test_the_target_of_expected_sarsa_is_the_mean_of_sarsas(step, x64):
    """Read off the gradient, which is linear in the target."""
    q, action, reward, next_q, _, probs, _, terminated = step

    def gradient(loss, *choice):
        return elementwise_gradient(
            lambda q: loss(q, action, reward, next_q, *choice, terminated, gamma=0.9), q
        )

    mean = sum(probs[:, [a]] * gradient(pgjax.sarsa_loss, np.full(SIZE, a)) for a in range(NUM_ACTIONS))
    close(mean, gradient(pgjax.expected_sarsa_loss, probs), rtol=1e-10)


def test_double_q_learning_with_equal_networks_is_q_learning(step, x64):
    q, action, reward, next_q, _, _, _, terminated = step
    double = pgjax.double_q_learning_loss(q, action, reward, next_q, next_q, terminated, gamma=0.9)
    close(double, pgjax.q_learning_loss(q, action, reward, next_q, terminated, gamma=0.9))


def test_actions_that_are_not_allowed_are_neither_maximum_nor_chosen(step, x64):
    q, action, reward, next_q, other_q, _, _, terminated = step
    allowed = np.arange(NUM_ACTIONS) != 1
    hidden, hidden_other = np.where(allowed, next_q, -np.inf), np.where(allowed, other_q, -np.inf)
    arguments = q, action, reward
    expected = pgjax.q_learning_loss(*arguments, next_q[:, allowed], terminated, gamma=0.9)
    close(pgjax.q_learning_loss(*arguments, hidden, terminated, gamma=0.9), expected)
    expected = pgjax.double_q_learning_loss(
        *arguments, next_q[:, allowed], other_q[:, allowed], terminated, gamma=0.9
    )
    close(pgjax.double_q_learning_loss(*arguments, next_q, hidden_other, terminated, gamma=0.9), expected)


@pytest.fixture
def twins(rng):
    """One step with continuous actions: two Q(s, a), the reward, two Q(s', a'), log π(a' | s'), the end."""
    q, next_q = rng.normal(size=(2, 2, SIZE))
    return q, rng.normal(size=SIZE), next_q, rng.normal(size=SIZE), np.arange(SIZE) % 2 == 0


def test_clipped_double_q_loss_and_its_gradient(twins, x64):
    q, reward, next_q, _, terminated = twins
    error = q - (reward + 0.9 * ~terminated * np.minimum(*next_q))

    def loss(q):
        return pgjax.clipped_double_q_loss(q, reward, next_q, terminated, gamma=0.9)

    close(loss(q), error**2 / 2)
    close(elementwise_gradient(loss, q), error)


def test_one_critic_has_a_target_of_its_own_and_equal_twins_are_one(twins, x64):
    q, reward, next_q, _, terminated = twins
    target = reward + 0.9 * ~terminated * next_q[0]
    one = pgjax.clipped_double_q_loss(q[:1], reward, next_q[:1], terminated, gamma=0.9)
    close(one, pgjax.squared_error_loss(q[:1], target[None]))
    equal = pgjax.clipped_double_q_loss(q[[0, 0]], reward, next_q[[0, 0]], terminated, gamma=0.9)
    close(equal, np.concatenate([one, one]))


def test_soft_q_loss_and_its_gradient(twins, x64):
    q, reward, next_q, next_log_prob, terminated = twins
    error = q - (reward + 0.9 * ~terminated * (np.minimum(*next_q) - 0.3 * next_log_prob))

    def loss(q):
        return pgjax.soft_q_loss(q, reward, next_q, next_log_prob, terminated, gamma=0.9, alpha=0.3)

    close(loss(q), error**2 / 2)
    close(elementwise_gradient(loss, q), error)


def test_soft_q_without_a_temperature_is_clipped_double_q(twins, x64):
    q, reward, next_q, next_log_prob, terminated = twins
    soft = pgjax.soft_q_loss(q, reward, next_q, next_log_prob, terminated, gamma=0.9, alpha=0.0)
    close(soft, pgjax.clipped_double_q_loss(q, reward, next_q, terminated, gamma=0.9))


def test_soft_q_without_a_temperature_is_expected_sarsa(step, x64):
    q, action, reward, next_q, _, probs, _, terminated = step
    soft = pgjax.expected_soft_q_loss(
        q[None], action, reward, next_q[None], np.log(probs), terminated, gamma=0.9, alpha=0.0
    )
    sarsa = pgjax.expected_sarsa_loss(q, action, reward, next_q, probs, terminated, gamma=0.9)
    close(soft[0], sarsa, rtol=1e-10)


def test_the_expected_soft_target_is_the_mean_of_the_sampled_one_for_twins(step, x64):
    q, action, reward, next_q, other_q, probs, _, terminated = step
    taken, twins = q[np.arange(SIZE), action][None], np.stack([next_q, other_q])

    def gradient(a):
        return elementwise_gradient(
            lambda q: pgjax.soft_q_loss(
                q, reward, twins[..., a], np.log(probs[:, a]), terminated, gamma=0.9, alpha=0.3
            )[0],
            np.concatenate([taken, taken]),
        )[0]

    mean = sum(probs[:, a] * gradient(a) for a in range(NUM_ACTIONS))
    exact = elementwise_gradient(
        lambda q: pgjax.expected_soft_q_loss(
            q, action, reward, twins, np.log(probs), terminated, gamma=0.9, alpha=0.3
        )[0],
        np.stack([q, q]),
    )[0]
    close(exact, np.eye(NUM_ACTIONS)[action] * np.asarray(mean)[:, None], rtol=1e-10)


@pytest.mark.parametrize("name", ["value", "policy"])
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_actions_that_are_not_allowed_count_nothing_in_soft_losses(name, alpha):
    q, mask = jnp.array([[1.0, 50.0, 3.0]]), jnp.array([[True, False, True]])

    def loss(logits, q, mask):
        log_probs = Categorical(logits, mask).log_probs
        if name == "policy":
            return pgjax.expected_soft_policy_loss(log_probs, q[None], alpha=alpha)[0]
        zero, one, no = jnp.zeros(1, int), jnp.ones(1), jnp.zeros(1, bool)
        return pgjax.expected_soft_q_loss(q[None], zero, one, q[None], log_probs, no, gamma=0.9, alpha=alpha)[
            0, 0
        ]

    value, gradient = jax.value_and_grad(loss)(jnp.zeros((1, 3)), q, mask)
    np.testing.assert_allclose(value, loss(jnp.zeros((1, 2)), q[:, ::2], None), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_huber_loss_is_quadratic_near_and_linear_far(rng, x64):
    value, target = rng.normal(size=(2, SIZE)) * 3
    for delta in (0.5, 2.0):
        expected = [(e**2 / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2)) for e in value - target]
        close(pgjax.huber_loss(value, target, delta=delta), expected)
        gradient = elementwise_gradient(lambda v, d=delta: pgjax.huber_loss(v, target, delta=d), value)
        close(gradient, np.clip(value - target, -delta, delta))
    close(pgjax.huber_loss(value, target, delta=1e3), pgjax.squared_error_loss(value, target))


def test_every_one_step_loss_takes_another_measure_of_the_error(step, twins, x64):
    q, action, reward, next_q, other_q, probs, next_action, terminated = step
    for_finite_actions = [
        (pgjax.sarsa_loss, (next_q, next_action)),
        (pgjax.expected_sarsa_loss, (next_q, probs)),
        (pgjax.q_learning_loss, (next_q,)),
        (pgjax.double_q_learning_loss, (next_q, other_q)),
    ]
    calls = [
        functools.partial(loss, q, action, reward, *rest, terminated, gamma=0.9)
        for loss, rest in for_finite_actions
    ]
    twin_q, twin_reward, twin_next_q, log_prob, end = twins
    calls += [
        functools.partial(pgjax.clipped_double_q_loss, twin_q, twin_reward, twin_next_q, end, gamma=0.9),
        functools.partial(
            pgjax.soft_q_loss, twin_q, twin_reward, twin_next_q, log_prob, end, gamma=0.9, alpha=0.3
        ),
        functools.partial(
            pgjax.expected_soft_q_loss,
            *(q[None], action, reward, next_q[None], np.log(probs), terminated),
            gamma=0.9,
            alpha=0.3,
        ),
    ]
    for call in calls:
        squared = np.asarray(call())
        error = np.sqrt(2 * squared)
        expected = np.where(error <= 1.0, squared, error - 0.5)
        close(call(error_loss=pgjax.huber_loss), expected, rtol=1e-9)


def test_nan_behind_a_termination_does_not_leak_into_the_target():
    q, zero, one, end = jnp.ones((1, 2)), jnp.zeros(1, int), jnp.ones(1), jnp.ones(1, bool)
    nan, nans, half = jnp.full((1, 2), jnp.nan), jnp.full((1, 1, 2), jnp.nan), jnp.full((1, 2), 0.5)
    losses = {
        "sarsa": lambda q: pgjax.sarsa_loss(q, zero, one, nan, zero, end, gamma=0.9),
        "expected_sarsa": lambda q: pgjax.expected_sarsa_loss(q, zero, one, nan, half, end, gamma=0.9),
        "q_learning": lambda q: pgjax.q_learning_loss(q, zero, one, nan, end, gamma=0.9),
        "double_q": lambda q: pgjax.double_q_learning_loss(q, zero, one, nan, nan, end, gamma=0.9),
        "clipped_double_q": lambda q: pgjax.clipped_double_q_loss(q, one, nan[:, :1], end, gamma=0.9),
        "soft_q": lambda q: pgjax.soft_q_loss(q, one, nan[:, :1], nan[0, :1], end, gamma=0.9, alpha=0.1),
        "expected_soft_q": lambda q: pgjax.expected_soft_q_loss(
            q[None], zero, one, nans, nan, end, gamma=0.9, alpha=0.1
        ),
    }
    for name, loss in losses.items():
        critics = q[:, :1] if name in ("clipped_double_q", "soft_q") else q
        value, gradient = jax.value_and_grad(lambda q, f=loss: f(q).sum())(critics)
        assert value == 0.0, name
        assert np.isfinite(gradient).all(), name


def test_shapes_that_would_broadcast_to_a_table_are_an_error():
    """`[B, 1]` against `[B]` is `[B, B]`, silently, in much code."""
    q, action, flat = jnp.zeros((4, 2)), jnp.zeros(4, int), jnp.zeros(4)
    no, column = jnp.zeros(4, bool), jnp.zeros((4, 1))
    with pytest.raises(AssertionError):
        pgjax.q_learning_loss(q, action, column, q, no, gamma=0.9)
    with pytest.raises(AssertionError):
        pgjax.clipped_double_q_loss(column, flat, column, no, gamma=0.9)
    with pytest.raises(AssertionError):
        pgjax.soft_policy_loss(flat, column, alpha=0.1)


# policies that follow Q


def test_the_deterministic_policy_gradient_is_that_of_q_times_that_of_the_action(rng, x64):
    weight, obs, best = rng.normal(size=3), rng.normal(size=(SIZE, 3)), rng.normal(size=SIZE)

    def loss(weight):
        return pgjax.deterministic_policy_loss(-((jnp.tanh(obs @ weight) - best) ** 2)).sum()

    action = np.tanh(obs @ weight)
    slope = -2 * (action - best)  # ∂Q/∂a
    close(jax.grad(loss)(weight), -(slope * (1 - action**2)) @ obs, rtol=1e-10)


def test_soft_policy_loss_and_its_gradients(rng, x64):
    log_prob, q = rng.normal(size=SIZE), rng.normal(size=(2, SIZE))
    close(pgjax.soft_policy_loss(log_prob, q, alpha=0.3), 0.3 * log_prob - np.minimum(*q))
    gradients = jax.grad(lambda *x: pgjax.soft_policy_loss(*x, alpha=0.3).sum(), (0, 1))(log_prob, q)
    close(gradients[0], np.full(SIZE, 0.3))
    close(gradients[1], -(q == q.min(0)).astype(float))
    close(pgjax.soft_policy_loss(log_prob, q[:1], alpha=0.0), pgjax.deterministic_policy_loss(q[0]))


def test_the_soft_policy_loss_of_the_boltzmann_policy_is_minus_alpha_log_z_for_every_action(x64):
    """Q = −a²/2: π ∝ exp(Q / α) is a Gaussian of variance α, and log π = Q/α − log Z."""
    alpha, noise = 0.7, jnp.asarray(stats.norm.ppf((np.arange(8) + 0.5) / 8))[:, None]

    def loss(log_std):
        pi = DiagGaussian(jnp.zeros((8, 1)), jnp.broadcast_to(log_std, (8, 1)))
        action = pi.mean + jnp.exp(pi.log_std) * noise
        return pgjax.soft_policy_loss(pi.log_prob(action), -(action.T**2) / 2, alpha=alpha)

    best = 0.5 * jnp.log(alpha)
    close(loss(best), np.full(8, -alpha * 0.5 * np.log(2 * np.pi * alpha)), rtol=1e-10)


def test_expected_soft_policy_loss_is_least_at_the_boltzmann_policy(rng, x64):
    """There it is −α log Σ exp(Q/α), and above it by α KL(π ‖ Boltzmann) elsewhere."""
    q, logits, alpha = rng.normal(size=(2, SIZE, 3)), rng.normal(size=(SIZE, 3)), 0.4
    boltzmann, pi = Categorical(jnp.asarray(q.min(0) / alpha)), Categorical(jnp.asarray(logits))
    least = -alpha * jax.nn.logsumexp(q.min(0) / alpha, -1)
    close(pgjax.expected_soft_policy_loss(boltzmann.log_probs, q, alpha=alpha), least, rtol=1e-10)
    loss = pgjax.expected_soft_policy_loss(pi.log_probs, q, alpha=alpha)
    close(loss, least + alpha * pi.kl(boltzmann), rtol=1e-10)


def test_expected_soft_policy_loss_without_a_temperature_is_the_all_action_loss(rng, x64):
    q, pi = rng.normal(size=(SIZE, 3)), Categorical(jnp.asarray(rng.normal(size=(SIZE, 3))))
    loss = pgjax.expected_soft_policy_loss(pi.log_probs, q[None], alpha=0.0)
    close(loss, pgjax.all_action_loss(pi.probs, q))


def test_the_expected_soft_loss_is_the_mean_of_the_sampled_one(rng, x64):
    q, pi = rng.normal(size=(2, SIZE, 3)), Categorical(jnp.asarray(rng.normal(size=(SIZE, 3))))
    mean = sum(
        pi.probs[:, a] * pgjax.soft_policy_loss(pi.log_probs[:, a], q[..., a], alpha=0.4) for a in range(3)
    )
    close(pgjax.expected_soft_policy_loss(pi.log_probs, q, alpha=0.4), mean, rtol=1e-10)


def test_the_temperature_moves_towards_the_entropy_that_is_wanted(x64):
    """The gradient of the paper's −α (log π + target), but for the factor α."""
    log_prob, log_alpha = np.array([-3.0, 0.0, 2.0]), -5.0

    def paper(x):
        return -jnp.exp(x) * (log_prob.mean() - 1.5)

    def loss(x):
        return pgjax.temperature_loss(x, log_prob, target_entropy=-1.5).mean()

    gradient = jax.grad(loss)(log_alpha)
    close(jax.grad(paper)(log_alpha), np.exp(log_alpha) * gradient)
    assert gradient > 0  # entropy 1/3, more than −1.5: α falls


def test_the_temperature_settles_where_the_entropy_is_as_wanted(x64):
    """One state, Q = (1, 0): the policy is always the best for its α, so one entropy is reached."""
    optimizer, target = optax.adam(0.05), 0.5
    log_alpha = jnp.asarray(2.0)

    def update(loop, _):
        log_alpha, opt_state = loop
        entropy = Categorical(jnp.array([1.0, 0.0]) / jnp.exp(log_alpha)).entropy()
        gradient = jax.grad(lambda x: pgjax.temperature_loss(x, -entropy, target_entropy=target))(log_alpha)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(log_alpha, updates), opt_state), entropy

    _, entropy = jax.lax.scan(update, (log_alpha, optimizer.init(log_alpha)), length=500)
    np.testing.assert_allclose(entropy[-1], target, atol=1e-3)


VECTOR, TABLE = jnp.linspace(-1.0, 1.0, SIZE), jnp.linspace(-1.0, 1.0, SIZE * 3).reshape(SIZE, 3)
ZEROS, NEVER = jnp.zeros(SIZE, int), jnp.zeros(SIZE, bool)
LOG_PROBS = jax.nn.log_softmax(TABLE)
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
        lambda q, r, n, p: pgjax.expected_sarsa_loss(q, ZEROS, r, n, p, NEVER, gamma=0.9),
        (TABLE, VECTOR, TABLE + 1.0, jax.nn.softmax(TABLE)),
        (1, 2, 3),
    ),
    "huber_loss": (pgjax.huber_loss, (VECTOR, VECTOR + 0.1), (1,)),
    "sarsa_loss": (
        lambda q, r, n: pgjax.sarsa_loss(q, ZEROS, r, n, ZEROS, NEVER, gamma=0.9),
        (TABLE, VECTOR, TABLE + 1.0),
        (1, 2),
    ),
    "q_learning_loss": (
        lambda q, r, n: pgjax.q_learning_loss(q, ZEROS, r, n, NEVER, gamma=0.9),
        (TABLE, VECTOR, TABLE + 1.0),
        (1, 2),
    ),
    "double_q_learning_loss": (
        lambda q, r, n, s: pgjax.double_q_learning_loss(q, ZEROS, r, n, s, NEVER, gamma=0.9),
        (TABLE, VECTOR, TABLE + 1.0, TABLE - 1.0),
        (1, 2, 3),
    ),
    "clipped_double_q_loss": (
        lambda q, r, n: pgjax.clipped_double_q_loss(q[None], r, n[None], NEVER, gamma=0.9)[0],
        (VECTOR, VECTOR + 0.1, VECTOR + 1.0),
        (1, 2),
    ),
    "soft_q_loss": (
        lambda q, r, n, p, a: pgjax.soft_q_loss(q[None], r, n[None], p, NEVER, gamma=0.9, alpha=a)[0],
        (VECTOR, VECTOR + 0.1, VECTOR + 1.0, VECTOR - 1.0, 0.5),
        (1, 2, 3, 4),
    ),
    "expected_soft_q_loss": (
        lambda q, r, n, p, a: pgjax.expected_soft_q_loss(
            q[None], ZEROS, r, n[None], p, NEVER, gamma=0.9, alpha=a
        )[0],
        (TABLE, VECTOR, TABLE + 1.0, LOG_PROBS, 0.5),
        (1, 2, 3, 4),
    ),
    "deterministic_policy_loss": (pgjax.deterministic_policy_loss, (VECTOR,), ()),
    "soft_policy_loss": (
        lambda p, q, a: pgjax.soft_policy_loss(p, q[None], alpha=a),
        (VECTOR, VECTOR + 0.1, 0.5),
        (2,),
    ),
    "expected_soft_policy_loss": (
        lambda p, q, a: pgjax.expected_soft_policy_loss(p, q[None], alpha=a),
        (LOG_PROBS, TABLE, 0.5),
        (1, 2),
    ),
    "temperature_loss": (
        lambda x, p, t: pgjax.temperature_loss(x, p, target_entropy=t),
        (jnp.ones(()), VECTOR - 1.0, -0.5),
        (1, 2),
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
