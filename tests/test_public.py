import inspect
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pgjax
from pgjax import networks, tabular
from pgjax.distributions import Categorical, DiagGaussian, TanhGaussian
from pgjax.types import Algorithm, Transition

T, N, K = 3, 2, 4
NORMAL = np.random.default_rng(0).normal(size=(6, T, N)).astype(np.float32)
R, V, NEXT, W, LOG_PROB, OLD = (jnp.asarray(x) for x in NORMAL)
TERMINATED, TRUNCATED = jnp.arange(T * N).reshape(T, N) == 2, jnp.arange(T * N).reshape(T, N) == 3
VALID = jnp.arange(T)[:, None] < jnp.array([3, 2])[None]
FEATURES = jnp.asarray(np.random.default_rng(1).normal(size=(T, N, K)), jnp.float32)
ACTION = jnp.asarray(np.random.default_rng(2).integers(0, 3, (T, N)))
PARAMS = jnp.asarray(np.random.default_rng(3).normal(size=(K, 3)), jnp.float32)
TRAJ = Transition(FEATURES, ACTION, LOG_PROB, R, TERMINATED, TRUNCATED, FEATURES)
FLAGS = TERMINATED, TRUNCATED
TWINS, TWIN_FEATURES = jnp.stack([V, NEXT]), jnp.stack([FEATURES, -FEATURES])
PROBS = jax.nn.softmax(FEATURES)
KEY = jax.random.key(0)


def linear(params, obs):
    return Categorical(obs @ params)


class Line:
    """An environment: the position moves with the action, and ends at 3."""

    def reset(self, key, params):
        return jnp.zeros(K), jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params):
        state = state + action
        end = state >= 3
        info = {"final_observation": jnp.full(K, state.astype(jnp.float32))}
        state = jnp.where(end, 0, state)
        return jnp.full(K, state.astype(jnp.float32)), state, jnp.ones(()), end, jnp.zeros((), bool), info


class Counter(NamedTuple):
    """The state of an algorithm that counts."""

    learned: jax.Array


ENV = Line()
COUNTING = Algorithm(
    init=lambda key: Counter(jnp.zeros(())),
    step=lambda key, state: (Counter(state.learned + 1.0), {"loss": state.learned}),
    act=lambda key, state, obs: jnp.zeros((), jnp.int32),
)


def policy(key, obs):
    return jax.random.bernoulli(key, shape=obs.shape[:1]).astype(jnp.int32), jnp.zeros(obs.shape[0])


CARRY = pgjax.reset_envs(KEY, ENV, None, N)
MOMENTS = pgjax.init_moments(jnp.zeros(K))
REPLAY = pgjax.init_replay(jnp.zeros(K), 5)
SCALING = pgjax.init_reward_scaling(N)
MDP = tabular.random_mdp(KEY, K, 3, 0.9)


def draw(key, n):
    return jax.random.normal(key, (T, n)), None


def improvement(params):
    return params.sum(), (params**2).mean()


def squared_output(params, batch):
    return ((batch @ params) ** 2).mean()


SGD = optax.sgd(0.1)
AUDIT = {"exact": jnp.zeros(()), "batch_sizes": (1, 2), "num_batches": 3}
G = {"gamma": 0.9}
GL = {"gamma": 0.9, "lambda_": 0.8}

# Every public function with arguments. Whatever is no array, key or float is static.
EXAMPLES = {
    "reverse_recurrence": ((R, W, 0.5), {}),
    "total_return": ((R, VALID), {}),
    "reward_to_go": ((R, *FLAGS), G),
    "n_step_return": ((R, NEXT, *FLAGS), {**G, "n": 2}),
    "lambda_return": ((R, NEXT, *FLAGS), GL),
    "episode_time": (FLAGS, {}),
    "time_discount": (FLAGS, G),
    "return_so_far": ((R, *FLAGS), G),
    "td_error": ((R, V, NEXT, TERMINATED), G),
    "gae": ((R, V, NEXT, *FLAGS), GL),
    "importance_ratio": ((LOG_PROB, OLD), {}),
    "vtrace": ((jnp.exp(W), R, V, NEXT, *FLAGS), {**GL, "rho_clip": 2.0, "c_clip": 1.5}),
    "retrace": ((jnp.exp(W), R, V, NEXT, *FLAGS), GL),
    "standardize": ((R, VALID), {}),
    "constant_baseline": ((R, VALID), {}),
    "time_baseline": ((R, VALID), {}),
    "leave_one_out_baseline": ((R, VALID), {}),
    "optimal_baseline": ((FEATURES, R, VALID), {"per": "time"}),
    "linear_baseline": ((FEATURES, R, VALID), {}),
    "time_features": ((FEATURES,), {}),
    "subtract_baseline": ((R, V, VALID), {}),
    "score": ((linear, PARAMS, FEATURES, ACTION), {}),
    "trajectory_log_prob": ((linear, PARAMS, TRAJ, VALID), {}),
    "policy_gradient": ((linear, PARAMS, TRAJ, W, VALID), {}),
    "trajectory_gradients": ((linear, PARAMS, TRAJ, W, VALID), {}),
    "score_function_loss": ((LOG_PROB, W), {}),
    "surrogate_loss": ((LOG_PROB, OLD, W), {}),
    "clipped_surrogate_loss": ((LOG_PROB, OLD, W), {"clip_eps": 0.2}),
    "all_action_loss": ((PROBS, FEATURES), {}),
    "squared_error_loss": ((V, R), {}),
    "clipped_value_loss": ((V, NEXT, R), {"clip_eps": 0.2}),
    "huber_loss": ((V, R), {"delta": 0.5}),
    "sarsa_loss": ((FEATURES, ACTION, R, FEATURES, ACTION, TERMINATED), G),
    "expected_sarsa_loss": ((FEATURES, ACTION, R, FEATURES, PROBS, TERMINATED), G),
    "q_learning_loss": ((FEATURES, ACTION, R, FEATURES, TERMINATED), {**G, "error_loss": pgjax.huber_loss}),
    "double_q_learning_loss": ((FEATURES, ACTION, R, FEATURES, -FEATURES, TERMINATED), G),
    "clipped_double_q_loss": ((TWINS, R, -TWINS, TERMINATED), G),
    "soft_q_loss": ((TWINS, R, -TWINS, LOG_PROB, TERMINATED), {**G, "alpha": 0.2}),
    "expected_soft_q_loss": (
        (TWIN_FEATURES, ACTION, R, TWIN_FEATURES, jnp.log(PROBS), TERMINATED),
        {**G, "alpha": 0.2},
    ),
    "deterministic_policy_loss": ((V,), {}),
    "soft_policy_loss": ((LOG_PROB, TWINS), {"alpha": 0.2}),
    "expected_soft_policy_loss": ((jnp.log(PROBS), TWIN_FEATURES), {"alpha": 0.2}),
    "temperature_loss": ((jnp.zeros(()), LOG_PROB), {"target_entropy": -1.0}),
    "approximate_kl": ((LOG_PROB, OLD), {}),
    "clip_fraction": ((LOG_PROB, OLD), {"clip_eps": 0.2}),
    "effective_sample_size": ((LOG_PROB,), {}),
    "explained_variance": ((V, R, VALID), {}),
    "gradient_cosine": ((PARAMS, PARAMS), {}),
    "gradient_noise_scale": ((PARAMS,), {"batch_size": 8.0}),
    "surrogate_improvement": ((LOG_PROB, OLD, W, VALID), {}),
    "improvement_ratio": ((0.5, 2.0), {}),
    "audit": ((KEY, lambda traj, valid: traj.mean(), draw), AUDIT),
    "audit_table": (({"mean": pgjax.audit(KEY, lambda traj, valid: traj.mean(), draw, **AUDIT)},), {}),
    "variance_decomposition": ((MDP, linear, PARAMS), {}),
    "optimal_state_baseline": ((MDP, linear, PARAMS), {}),
    "fisher_matrix": ((linear, PARAMS, FEATURES), {"weight": 1.0 * VALID}),
    "empirical_fisher_matrix": ((linear, PARAMS, FEATURES, ACTION), {"weight": 1.0 * VALID}),
    "fisher_vector_product": ((linear, PARAMS, FEATURES, PARAMS), {"damping": 0.1}),
    "natural_gradient": ((linear, PARAMS, FEATURES, PARAMS), {"damping": 0.1, "cg_iters": 2}),
    "kl_step_size": ((2.0,), {"max_kl": 0.01}),
    "backtracking_line_search": ((PARAMS, PARAMS, improvement), {"max_kl": 0.01}),
    "minibatch_descent": (
        (KEY, squared_output, SGD, PARAMS, SGD.init(PARAMS), FEATURES),
        {"num_minibatches": 2, "num_epochs": 1},
    ),
    "to_shards": ((TRAJ, 2), {}),
    "shuffled_minibatches": ((KEY, 2, 6, 3, 2), {}),
    "take_minibatch": ((FEATURES, jnp.zeros((T, 2), int)), {}),
    "init_moments": ((jnp.zeros(K),), {}),
    "update_moments": ((MOMENTS, FEATURES), {}),
    "normalize": ((MOMENTS, FEATURES), {"clip": 5.0}),
    "init_reward_scaling": ((N,), {}),
    "update_reward_scaling": ((SCALING, R, *FLAGS), G),
    "scale_reward": ((SCALING, R), {"clip": 5.0}),
    "init_replay": ((TRAJ, 5), {}),
    "add_to_replay": ((REPLAY, FEATURES), {}),
    "sample_replay": ((KEY, REPLAY, 2), {}),
    "n_step_transitions": ((TRAJ,), {**G, "n": 2}),
    "epsilon_greedy": ((FEATURES, FEATURES < 1.0), {"epsilon": 0.1}),
    "gaussian_noise": ((KEY, (N, K)), {"std": 0.2, "noise_clip": 0.5}),
    "linear_epsilon": ((jnp.arange(3),), {"start": 1.0, "end": 0.1, "num_steps": 2}),
    "correlated_noise": ((KEY, FEATURES), {"correlation": 0.5}),
    "ornstein_uhlenbeck_noise": ((KEY, FEATURES), {"theta": 0.1}),
    "add_noise": ((FEATURES, FEATURES, -1.0, 2.0), {}),
    "reset_envs": ((KEY, ENV, None, N), {}),
    "rollout": ((KEY, CARRY, policy, ENV, None, T), {}),
    "rollout_episodes": ((KEY, policy, ENV, None, N, T), {}),
    "rollout_values": ((lambda obs: obs.sum(-1), TRAJ), {"num_chunks": 3}),
    "episode_stats": ((TRAJ, VALID), {}),
    "evaluate": ((KEY, lambda key, obs: policy(key, obs)[0], ENV, None, N, T), {}),
    "train": ((KEY, COUNTING, 2), {}),
    "shard": ((jax.random.split(KEY, 2),), {}),
}
PUBLIC = {
    name: item
    for name, item in vars(pgjax).items()
    if not name.startswith("_") and not inspect.ismodule(item)
}
FUNCTIONS = [
    name
    for name, item in PUBLIC.items()
    if callable(item) and not isinstance(item, type) and name != "Policy"
]
TEXT = {"audit_table"}  # what returns text runs on the host
COMPILED = [name for name in FUNCTIONS if hasattr(PUBLIC[name], "_cache_size")]


def is_traced(x):
    leaves = jax.tree.leaves(x)
    return (
        bool(leaves)
        and not isinstance(x, str)
        and all(isinstance(leaf, jax.Array | float) for leaf in leaves)
    )


def call(name, transform=lambda x: x):
    """Call a function with its traced arguments transformed."""
    args, kwargs = EXAMPLES[name]
    args = [transform(x) if is_traced(x) else x for x in args]
    return PUBLIC[name](*args, **{k: transform(x) if is_traced(x) else x for k, x in kwargs.items()})


def other_values(tree):
    """The same shapes and types, other numbers."""

    def change(x):
        if isinstance(x, float):
            return x / 2
        return x * 1.5 if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(change, tree)


def test_the_table_above_is_complete():
    assert set(EXAMPLES) == set(FUNCTIONS)
    assert set(FUNCTIONS) <= set(pgjax.__all__)


def test_most_functions_are_compiled():
    assert set(COMPILED) >= {"gae", "lambda_return", "policy_gradient", "clipped_surrogate_loss", "normalize"}
    estimators = [n for n in FUNCTIONS if ".estimators." in PUBLIC[n].__module__]
    losses = [n for n in FUNCTIONS if ".losses." in PUBLIC[n].__module__]
    gradients = [n for n in FUNCTIONS if PUBLIC[n].__module__ == "pgjax.gradients"]
    assert {*estimators, *losses, *gradients} <= set(COMPILED)


@pytest.mark.parametrize("name", COMPILED)
def test_repeated_calls_compile_once(name):
    call(name)
    compiled = PUBLIC[name]._cache_size()
    for _ in range(2):
        call(name, other_values)
        call(name)
    assert PUBLIC[name]._cache_size() == compiled


GRADIENTS = {
    "score": lambda apply, params: pgjax.score(apply, params, FEATURES, ACTION),
    "trajectory_log_prob": lambda apply, params: pgjax.trajectory_log_prob(apply, params, TRAJ),
    "policy_gradient": lambda apply, params: pgjax.policy_gradient(apply, params, TRAJ, W),
    "trajectory_gradients": lambda apply, params: pgjax.trajectory_gradients(apply, params, TRAJ, W),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_bound_apply_compiles_once_and_a_fresh_lambda_anew(name):
    actor = networks.CategoricalActor(3, networks.MLP((2,)))
    params = actor.init(KEY, FEATURES[0, 0])
    function, size = GRADIENTS[name], PUBLIC[name]._cache_size
    before = size()
    for scale in (1.0, 2.0, 3.0):
        function(actor.apply, jax.tree.map(lambda x, scale=scale: scale * x, params))
    assert size() == before + 1
    function(networks.CategoricalActor(3, networks.MLP((2,))).apply, params)  # an equal network, made anew
    equal = size()
    assert equal <= before + 2
    for _ in range(2):
        function(lambda p, o: actor.apply(p, o), params)
    assert size() == equal + 2


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in TEXT])
def test_every_function_lowers_for_cpu_cuda_and_tpu(name):
    args, kwargs = EXAMPLES[name]
    traced = {str(i): x for i, x in [*enumerate(args), *kwargs.items()] if is_traced(x)}

    def function(traced):
        filled = [traced.get(str(i), x) for i, x in enumerate(args)]
        return PUBLIC[name](*filled, **{k: traced.get(k, x) for k, x in kwargs.items()})

    exported = jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(traced)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name):
    item = PUBLIC[name]
    if name == "Policy":  # an alias: its module says what it is
        return
    doc = inspect.getdoc(item)
    assert doc
    assert doc.splitlines()[0].endswith(".")
    if name in FUNCTIONS:
        assert "\nReturns:\n" in doc
        for parameter in inspect.signature(item).parameters:
            assert f"\n    {parameter}: " in doc, f"{parameter} is not explained"
    if name in COMPILED:
        assert "\nExample:\n    >>> " in doc


def test_the_version_is_stated():
    assert pgjax.__version__.count(".") == 2


DISTRIBUTIONS = {
    "categorical": Categorical(FEATURES),
    "masked": Categorical(FEATURES, FEATURES.min(-1, keepdims=True) < FEATURES),
    "gaussian": DiagGaussian(FEATURES, FEATURES),
    "squashed": TanhGaussian(FEATURES, FEATURES, -1.0, 2.0),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_method_of_a_distribution_lowers_for_all_platforms(name):
    def methods(distribution, key_data):
        key = jax.random.wrap_key_data(key_data)
        action, log_prob = distribution.sample_and_log_prob(key)
        return (
            (action, log_prob, distribution.sample(key), distribution.log_prob(action)),
            (distribution.entropy(), distribution.mode(), distribution.kl(distribution)),
        )

    arguments = DISTRIBUTIONS[name], jax.random.key_data(KEY)
    exported = jax.export.export(jax.jit(methods), platforms=("cpu", "cuda", "tpu"))(*arguments)
    assert exported.platforms == ("cpu", "cuda", "tpu")
