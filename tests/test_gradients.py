import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import pgjax
from pgjax import networks
from pgjax.distributions import Categorical, DiagGaussian
from pgjax.types import Transition

THETA = np.log(oracles.POLICY)


def tabular(params, obs):
    return Categorical(params[obs])


def gaussian(params, obs):
    return DiagGaussian(obs @ params["w"], jnp.broadcast_to(params["log_std"], (*obs.shape[:-1], 2)))


def transition(obs, action, **fields):
    zeros = jnp.zeros(jax.tree.leaves(obs)[0].shape[:2])
    rest = {"log_prob": zeros, "reward": zeros, "terminated": zeros > 0, "truncated": zeros > 0}
    return Transition(obs=obs, action=action, next_obs=obs, **{**rest, **fields})


def random_problem(rng, masked=True):
    """A Gaussian policy on `[4, 3]` steps of episodes of lengths 4, 2 and 1."""
    params = {"w": rng.normal(size=(5, 2)), "log_std": rng.normal(size=2)}
    traj = transition(rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 3, 2)))
    valid = np.arange(4)[:, None] < [4, 2, 1] if masked else None
    return params, traj, rng.normal(size=(4, 3)), valid


def close(actual, desired, rtol=1e-10):
    jax.tree.map(lambda a, d: np.testing.assert_allclose(a, d, rtol=rtol, atol=1e-12), actual, desired)


def test_the_score_is_the_jacobian_of_the_log_probability(rng, x64):
    params, traj, _, _ = random_problem(rng)
    expected = jax.jacobian(lambda p: gaussian(p, traj.obs).log_prob(traj.action))(params)
    close(pgjax.score(gaussian, params, traj.obs, traj.action), expected)


def test_the_score_of_a_softmax_is_indicator_minus_probability(x64):
    tau = oracles.enumerate_trajectories(2, early_end=False)
    close(pgjax.score(tabular, THETA, tau.obs, tau.action), oracles.softmax_scores(tau))


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_the_score_takes_any_number_of_batch_axes(shape, rng, x64):
    params, traj, _, _ = random_problem(rng)
    obs, action = traj.obs[: len(shape) * 2], traj.action[: len(shape) * 2]
    obs, action = obs[:2].reshape(6, 5), action[:2].reshape(6, 2)
    flat = pgjax.score(gaussian, params, obs, action)
    size = int(np.prod(shape))
    shaped = pgjax.score(gaussian, params, obs[:size].reshape(*shape, 5), action[:size].reshape(*shape, 2))
    close(shaped, jax.tree.map(lambda x: x[:size].reshape(*shape, *x.shape[1:]), flat))


def test_the_expected_score_is_zero_in_every_state(x64, rng):
    params = rng.normal(size=(2, 2))
    obs, action = np.array([[0, 0], [1, 1]]), np.array([[0, 1], [0, 1]])
    scores = pgjax.score(tabular, params, obs, action)
    probs = Categorical(jnp.asarray(params)).probs
    np.testing.assert_allclose(jnp.einsum("sa,saxy->sxy", probs, scores), 0.0, atol=1e-15)


@pytest.mark.parametrize("masked", [False, True])
def test_the_trajectory_log_probability_sums_the_valid_steps(masked, rng, x64):
    params, traj, _, valid = random_problem(rng, masked)
    log_prob = np.asarray(gaussian(params, jnp.asarray(traj.obs)).log_prob(traj.action))
    expected = np.where(np.ones((4, 3), bool) if valid is None else valid, log_prob, 0.0).sum(0)
    close(pgjax.trajectory_log_prob(gaussian, params, traj, valid), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_the_policy_gradient_is_the_weighted_sum_of_scores_over_the_trajectories(masked, rng, x64):
    params, traj, weight, valid = random_problem(rng, masked)
    scores = pgjax.score(gaussian, params, traj.obs, traj.action)
    kept = weight if valid is None else np.where(valid, weight, 0.0)
    each = jax.tree.map(lambda s: np.einsum("tn,tn...->n...", kept, s), scores)
    close(pgjax.trajectory_gradients(gaussian, params, traj, weight, valid), each)
    mean = jax.tree.map(lambda g: g.mean(0), each)  # over trajectories, not over steps
    close(pgjax.policy_gradient(gaussian, params, traj, weight, valid), mean)


def test_the_summed_score_function_loss_over_n_has_minus_the_policy_gradient(rng, x64):
    params, traj, weight, valid = random_problem(rng)

    def loss(params):
        log_prob = gaussian(params, traj.obs).log_prob(traj.action)
        return jnp.where(valid, pgjax.score_function_loss(log_prob, weight), 0.0).sum() / 3

    ascent = pgjax.policy_gradient(gaussian, params, traj, weight, valid)
    close(jax.grad(loss)(params), jax.tree.map(jnp.negative, ascent))


@pytest.mark.parametrize(
    ("where", "garbage"), [("weight", 1e30), ("weight", np.nan), ("action", 1e6), ("obs", np.nan)]
)
@pytest.mark.parametrize("function", [pgjax.policy_gradient, pgjax.trajectory_gradients])
def test_padding_contributes_nothing(function, where, garbage, rng):
    params, traj, weight, valid = random_problem(rng)
    clean = function(gaussian, params, traj, weight, valid)
    if where == "weight":
        weight = np.where(valid, weight, garbage)
    else:
        spoiled = np.where(valid[..., None], getattr(traj, where), garbage)
        traj = traj._replace(**{where: spoiled})
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(clean))
    close(function(gaussian, params, traj, weight, valid), clean, rtol=1e-6)


@functools.cache
def enumerated(early_end):
    return oracles.enumerate_trajectories(3, early_end=early_end)


def as_transition(tau):
    return transition(
        jnp.asarray(tau.obs),
        jnp.asarray(tau.action),
        reward=jnp.asarray(tau.reward),
        terminated=jnp.asarray(tau.terminated),
    )


def objective(theta, tau, gamma):
    """J(θ), every trajectory written out."""
    policy = jax.nn.softmax(theta)[tau.obs, tau.action]
    probability = tau.dynamics * jnp.prod(jnp.where(tau.valid, policy, 1.0), 0)
    discount = gamma ** np.arange(3.0)[:, None]
    return (probability * (discount * tau.reward).sum(0)).sum()


def weights(traj, valid, gamma):
    to_go = pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=gamma)
    discounted = pgjax.time_discount(traj.terminated, traj.truncated, gamma=gamma)
    steps = jnp.arange(3)[:, None]
    return {
        "total_return": pgjax.total_return(gamma**steps * traj.reward, valid),
        "reward_to_go": discounted * to_go,
        "reward_to_go minus a number": discounted
        * pgjax.subtract_baseline(to_go, jnp.full_like(to_go, 7.0), valid),
    }


@pytest.mark.parametrize("gamma", [1.0, 0.7])
@pytest.mark.parametrize("early_end", [False, True])
@pytest.mark.parametrize("weight", ["total_return", "reward_to_go", "reward_to_go minus a number"])
def test_the_expected_estimate_is_the_exact_gradient(weight, early_end, gamma, x64):
    tau = enumerated(early_end)
    np.testing.assert_allclose(tau.probability.sum(), 1.0, rtol=1e-12)
    traj = as_transition(tau)
    psi = weights(traj, tau.valid, gamma)[weight]
    each = pgjax.trajectory_gradients(tabular, THETA, traj, psi, tau.valid)
    expected = np.einsum("m,m...->...", tau.probability, each)
    exact = jax.grad(objective)(jnp.asarray(THETA), tau, gamma)
    np.testing.assert_allclose(expected, exact, rtol=1e-10)


def test_without_the_time_discount_the_discounted_estimate_is_another_vector(x64):
    tau = enumerated(False)
    traj = as_transition(tau)
    psi = pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=0.7)
    each = pgjax.trajectory_gradients(tabular, THETA, traj, psi, tau.valid)
    expected = np.einsum("m,m...->...", tau.probability, each)
    assert np.abs(expected / jax.grad(objective)(jnp.asarray(THETA), tau, 0.7) - 1).max() > 0.05


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_the_meta_gradient_through_the_weight_equals_finite_differences(gamma, x64):
    tau = enumerated(True)
    traj = as_transition(tau)

    def estimate(gamma):
        psi = weights(traj, tau.valid, gamma)["reward_to_go"]
        return pgjax.policy_gradient(tabular, THETA, traj, psi, tau.valid)

    forward, backward = jax.jacfwd(estimate)(gamma), jax.jacrev(estimate)(gamma)
    numeric = oracles.finite_difference(estimate, gamma)
    assert np.abs(numeric).max() > 1e-3
    np.testing.assert_allclose(forward, numeric, atol=1e-8)
    np.testing.assert_allclose(backward, forward, atol=1e-12)


@pytest.fixture(scope="module")
def images():
    """A convolutional actor and `[2, 3]` images."""
    rng = np.random.default_rng(0)
    actor = networks.CategoricalActor(3, networks.CNN(channels=2, hidden=4))
    traj = transition(
        jnp.asarray(rng.normal(size=(2, 3, 5, 5, 2)), jnp.float32), jnp.asarray(rng.integers(0, 3, (2, 3)))
    )
    return actor, actor.init(jax.random.key(0), traj.obs[0, 0]), traj, jnp.asarray(rng.normal(size=(2, 3)))


def test_images_and_convolutions_give_the_same_sums_of_scores(images):
    actor, params, traj, weight = images
    scores = pgjax.score(actor.apply, params, traj.obs, traj.action)
    each = jax.tree.map(lambda s: jnp.einsum("tn,tn...->n...", weight, s), scores)
    gradients = pgjax.trajectory_gradients(actor.apply, params, traj, weight)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-6), gradients, each)
    mean = pgjax.policy_gradient(actor.apply, params, traj, weight)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e.mean(0), rtol=1e-4, atol=1e-6), mean, each)


def test_masks_inside_the_observations_are_read_per_sample(rng):
    actor = networks.CategoricalActor(3, networks.MLP((4,)))
    mask = np.array([[[True, True, False], [True, False, True]]])
    obs = {"obs": rng.normal(size=(1, 2, 5)).astype(np.float32), "action_mask": mask}
    params = actor.init(jax.random.key(0), jax.tree.map(lambda x: x[0, 0], obs))
    scores = pgjax.score(actor.apply, params, obs, np.zeros((1, 2), int))
    bias = scores["params"]["Dense_0"]["bias"]  # ∂/∂bias of the head is indicator − probability
    np.testing.assert_array_equal(bias[~mask], 0.0)
    assert (bias[mask] != 0).all()


def test_the_boltzmann_example():
    """One state, features 3 and 1, q = 1, Q = 1 and 100: π = (.8808, .1192), ∇J = −20.79."""

    def features(obs):
        return jnp.broadcast_to(jnp.array([[3.0], [1.0]]), (*obs.shape[:-1], 2, 1))

    actor = networks.LinearSoftmax(features)
    params = {"params": {"theta": jnp.ones(1)}}
    probs = actor.apply(params, jnp.zeros(1)).probs
    np.testing.assert_allclose(probs, [0.8808, 0.1192], atol=5e-5)
    traj = transition(jnp.zeros((1, 2, 1)), jnp.array([[0, 1]]))
    weight = 2 * probs * jnp.array([1.0, 100.0])  # the mean over two columns becomes the sum over actions
    gradient = pgjax.policy_gradient(actor.apply, params, traj, weight[None])
    np.testing.assert_allclose(gradient["params"]["theta"], [-20.79], atol=5e-3)
