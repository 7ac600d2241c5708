"""DQN, Q-learning and SARSA, against their updates by hand, and on the cliff."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probe_envs
import pytest
from zoo import CARTPOLE, PENDULUM, SMALL, TORSO, ZOO

import pgjax
from pgjax import networks, tabular
from pgjax.algorithms import dqn, q_learning, sarsa
from pgjax.tabular.mdp import Discrete

KEY = jax.random.key(0)
CLIFF = pgjax.envs.make("Cliff-tabular")
NUM_STATES = 38


def table():
    return networks.LinearQ(4, lambda obs: obs)  # the observation is one-hot


def make_dqn(**options):
    options = SMALL | {"num_updates": 1, "batch_size": 64, "exploration_steps": 100} | options
    return dqn.make(*CARTPOLE, networks.QNetwork(2, TORSO), optax.sgd(0.1), **options)


def step_of(algorithm, num_iterations=1):
    state = jax.jit(algorithm.init)(KEY)
    step, new = jax.jit(algorithm.step), state
    for i in range(num_iterations):
        new, metrics = step(jax.random.key(i + 1), new)
    return state, new, metrics


def test_neither_warm_up_nor_exploration_takes_what_is_forbidden():
    _, new, _ = step_of(ZOO["dqn-masked"](num_updates=12), 2)
    stored = jax.tree.map(lambda x: x[: new.replay.size], new.replay.storage)
    mask = np.asarray(stored.obs["action_mask"])
    assert not mask.all()
    assert mask[np.arange(len(mask)), stored.action].all()


@pytest.mark.parametrize(
    "options",
    [{}, {"double": True}, {"n_step": 3, "warmup_steps": 36}, {"huber": True}],
    ids=["plain", "double", "n_step", "huber"],
)
def test_a_step_of_dqn_by_hand(options):
    double, huber = (options.get(name, False) for name in ("double", "huber"))
    old, new, _ = step_of(make_dqn(**options))
    keys = jax.random.split(jax.random.split(jax.random.key(1), 1)[0], 3)
    sample, discount = pgjax.sample_replay(keys[1], new.replay, 64), 0.99
    if "n_step" in options:
        sample, discount = sample
        assert len(jnp.unique(discount)) > 1  # some are cut short by an episode's end
    network = networks.QNetwork(2, TORSO)
    target_params = jax.tree.map(lambda x: 1.5 * x, old.learned.target_params)
    # with a target network of its own, so that choosing and valuing differ
    old = old._replace(learned=old.learned._replace(target_params=target_params))
    new, _ = jax.jit(make_dqn(**options).step)(jax.random.key(1), old)
    next_value = network.apply(target_params, sample.next_obs)
    chooser = network.apply(old.learned.params, sample.next_obs) if double else next_value
    best = jnp.take_along_axis(next_value, chooser.argmax(-1)[:, None], 1)[:, 0]
    target = sample.reward + discount * jnp.where(sample.terminated, 0.0, best)

    def loss(params):
        value = jnp.take_along_axis(network.apply(params, sample.obs), sample.action[:, None], 1)[:, 0]
        return (optax.losses.huber_loss if huber else optax.losses.l2_loss)(value, target).mean()

    gradient = jax.grad(loss)(old.learned.params)
    wanted = jax.tree.map(lambda p, g: p - 0.1 * g, old.learned.params, gradient)
    chex.assert_trees_all_close(new.learned.params, wanted, rtol=1e-4, atol=1e-6)


def test_the_target_network_moves_at_its_period_and_then_copies():
    algorithm = make_dqn(target_period=3)
    state = jax.jit(algorithm.init)(KEY)
    first, step = state.learned.params, jax.jit(algorithm.step)
    for i in range(1, 7):
        state, _ = step(jax.random.fold_in(KEY, i), state)
        if i % 3 == 0:
            chex.assert_trees_all_equal(state.learned.target_params, state.learned.params)
            first = state.learned.params
        else:
            chex.assert_trees_all_equal(state.learned.target_params, first)


def test_exploration_falls_with_the_steps_that_were_taken():
    """ε from 1 to 0 over 100 steps, warm-up included: at the end every action is greedy."""
    algorithm = make_dqn(epsilon_end=0.0, num_updates=60, warmup_steps=2)
    state, new, _ = step_of(algorithm)
    q = networks.QNetwork(2, TORSO).apply
    storage = jax.tree.map(lambda x: x[: new.replay.size], new.replay.storage)
    del state
    # the buffer holds the last 40 transitions, all of them after step 82: ε below 0.2, at last 0
    assert new.env_steps == 122
    recent = storage.action[jnp.arange(new.replay.position - 4, new.replay.position) % 40]
    seen = storage.obs[jnp.arange(new.replay.position - 4, new.replay.position) % 40]
    greedy = q(new.learned.params, seen).argmax(-1)
    np.testing.assert_array_equal(recent, greedy)


@pytest.mark.parametrize("module", [q_learning, sarsa], ids=["q_learning", "sarsa"])
def test_tables_by_hand(module):
    """Every update of a run on the cliff against a NumPy table."""
    options = {"num_updates": 40, "gamma": 0.9, "epsilon_start": 0.3, "epsilon_end": 0.3}
    algorithm = module.make(*CLIFF, table(), optax.sgd(0.5), **options)
    state = jax.jit(algorithm.init)(KEY)
    q = np.zeros((NUM_STATES, 4))
    one = module.make(*CLIFF, table(), optax.sgd(0.5), **options | {"num_updates": 1})
    step, moved = jax.jit(one.step), 0
    for i in range(40):
        before, action = int(state.env_carry.obs[0].argmax()), int(state.action[0])
        state, metrics = step(jax.random.fold_in(KEY, i), state)
        found = np.asarray(state.learned.params["params"]["theta"])
        changed = np.argwhere(found != q)
        after = int(state.env_carry.obs[0].argmax())
        if metrics["episodes"] == 0:
            assert all(s == before for s, _ in changed)  # only the value of what was done there
            reward = -100.0 if after == 36 and before != 36 and before > 24 else -1.0
            following = q[after].max() if module is q_learning else q[after, int(state.action[0])]
            if len(changed):
                a = int(changed[0][1])
                assert module is q_learning or a == action
                wanted = q[before, a] + 0.5 * (reward + 0.9 * following - q[before, a])
                np.testing.assert_allclose(found[before, a], wanted, rtol=1e-5)
                moved += 1
        q = found.copy()
    assert moved > 30


@jax.jit
@jax.vmap
def greedy_length(params):
    """Steps from the start to the end, without exploration; 100 at most."""
    return pgjax.evaluate(
        KEY, lambda key, obs: table().apply(params, obs).argmax(-1), *CLIFF, 1, 100
    ).length_sum


@pytest.mark.slow
def test_the_cliff_tells_them_apart():
    """Sutton & Barto 2018, example 6.6: ε = 0.1, step size 0.5, 500 episodes or so; 8 seeds.

    Q-learning walks along the edge, 13 steps, and falls while it explores; SARSA goes round and earns more.
    """
    online, length = {}, {}
    for module in (q_learning, sarsa):
        algorithm = module.make(*CLIFF, table(), optax.sgd(0.5), num_updates=1000, gamma=1.0)
        state, metrics = pgjax.train(jax.vmap(jax.random.key)(jnp.arange(8)), algorithm, 15)
        late = metrics["episode_return_sum"][:, 5:].sum(1) / metrics["episodes"][:, 5:].sum(1)
        online[module] = np.asarray(late)
        length[module] = np.asarray(greedy_length(state.learned.params))
    assert (online[sarsa] > online[q_learning] + 10).all()
    assert (length[q_learning] == 13).all()
    assert np.median(length[sarsa]) > 13


@pytest.mark.slow
def test_q_learning_finds_the_best_values():
    """On a random problem, every action tried often and a step size that falls: Q is near Q*."""
    mdp = tabular.random_mdp(jax.random.key(3), 5, 3, 0.7)
    rate = optax.linear_schedule(0.5, 0.0, 20_000)
    algorithm = q_learning.make(
        mdp,
        None,
        networks.LinearQ(3, lambda obs: obs),
        optax.sgd(rate),
        num_updates=2000,
        gamma=0.7,
        epsilon_start=1.0,
        epsilon_end=1.0,
    )
    state, _ = pgjax.train(KEY, algorithm, 10)
    best = tabular.optimal_value(mdp)
    value = state.learned.params["params"]["theta"].max(-1)
    np.testing.assert_allclose(value, best, atol=0.05)


def test_a_dueling_network_has_the_mean_of_its_values_as_its_state_value():
    network = networks.DuelingQNetwork(3, TORSO)
    params = network.init(KEY, jnp.zeros(4))
    obs = jax.random.normal(KEY, (6, 4))

    def with_bias_moved(size):
        """The bias of one head raised by 1: that of the value has one output, of the advantages three."""
        return jax.tree.map(lambda x: x + 1.0 if x.shape == (size,) else x, params)

    value = network.apply(params, obs)
    np.testing.assert_allclose(network.apply(with_bias_moved(1), obs), value + 1.0, rtol=1e-5)
    # what all advantages have in common belongs to the state, and is taken out
    np.testing.assert_allclose(network.apply(with_bias_moved(3), obs), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("module", [q_learning, sarsa], ids=["q_learning", "sarsa"])
def test_no_update_is_refused(module):
    with pytest.raises(ValueError, match="num_updates must be at least 1"):
        module.make(*CLIFF, table(), optax.sgd(0.5), num_updates=0)


@pytest.mark.parametrize("module", [q_learning, sarsa, dqn], ids=["q_learning", "sarsa", "dqn"])
def test_continuous_actions_are_refused(module):
    with pytest.raises(ValueError, match="wants a finite number of them"):
        module.make(*PENDULUM, networks.QNetwork(1, TORSO), optax.sgd(0.5))


class Forbidden:
    """One state for ever; every step costs 1, and the second action is forbidden."""

    def action_space(self, params):
        return Discrete(2)

    def reset(self, key, params):
        return {"obs": jnp.ones(1), "action_mask": jnp.array([True, False])}, jnp.zeros(())

    def step(self, key, state, action, params):
        obs, state = self.reset(key, params)
        no = jnp.zeros((), bool)
        return obs, state, jnp.full((), -1.0), no, no, {"final_observation": obs}


@pytest.mark.parametrize("truncates", [False, True], ids=["terminated", "truncated"])
def test_an_episode_of_sarsa_begins_with_an_action_for_its_own_observation(truncates):
    """Episodes of one step: where they begin the observation is drawn, and the greedy action is its sign."""
    env = probe_envs.Probe(lambda obs, time, action: 0.0, signs=True, truncates=truncates)
    network, options = networks.LinearQ(2, lambda obs: obs), {"epsilon_start": 0.0, "epsilon_end": 0.0}
    algorithm = sarsa.make(env, None, network, optax.sgd(0.0), num_envs=64, num_updates=1, **options)
    state = algorithm.init(KEY)
    params = jax.tree.map(lambda x: jnp.array([[-1.0, 1.0], [0.0, 0.0]]), state.learned.params)
    state = state._replace(learned=state.learned._replace(params=params))
    new, _ = jax.jit(algorithm.step)(KEY, state)
    np.testing.assert_array_equal(new.action, new.env_carry.obs[:, 0] > 0)


@pytest.mark.parametrize("module", [q_learning, sarsa], ids=["q_learning", "sarsa"])
@pytest.mark.parametrize("truncates", [False, True], ids=["terminated", "truncated"])
def test_what_ends_has_no_future_and_what_is_cut_off_has(module, truncates):
    """One environment, steps of rate 1: after reward 2 the value is 2, or 2 + 0.5 · 5."""
    env = probe_envs.Probe(lambda obs, time, action: 2.0, truncates=truncates)
    network, options = networks.LinearQ(2, lambda obs: obs[..., :1]), {"gamma": 0.5, "num_updates": 1}
    algorithm = module.make(env, None, network, optax.sgd(1.0), num_envs=1, **options)
    state = algorithm.init(KEY)
    params = jax.tree.map(lambda x: jnp.full((1, 2), 5.0), state.learned.params)
    new, _ = jax.jit(algorithm.step)(
        jax.random.key(1), state._replace(learned=state.learned._replace(params=params))
    )
    changed = jax.tree.leaves(new.learned.params)[0]
    np.testing.assert_allclose(sorted(changed.ravel()), [4.5 if truncates else 2.0, 5.0])


@pytest.mark.parametrize("module", [q_learning, sarsa], ids=["q_learning", "sarsa"])
def test_nothing_is_learned_from_what_is_forbidden(module):
    """−1 for ever at γ = 0.5 is worth −2; the forbidden action's value, still 0, must not count."""
    network = networks.LinearQ(2, lambda obs: obs)
    algorithm = module.make(Forbidden(), None, network, optax.sgd(0.5), gamma=0.5, num_updates=100)
    state, metrics = pgjax.train(KEY, algorithm, 1)
    np.testing.assert_allclose(state.learned.params["params"]["theta"][0], [-2.0, 0.0], atol=1e-4)
    assert -2.0 < metrics["action_value"][0] < -1.8  # near −2 from the first updates on


def test_dqn_reports_the_best_action_that_is_allowed():
    network = networks.LinearQ(2, lambda obs: obs)
    sizes = {"num_envs": 2, "batch_size": 8, "capacity": 64, "warmup_steps": 8, "num_updates": 4}
    algorithm = dqn.make(Forbidden(), None, network, optax.sgd(0.0), **sizes)
    state = algorithm.init(KEY)
    params = jax.tree.map(lambda x: jnp.array([[-1.5, 3.0]]), state.learned.params)
    state = state._replace(learned=state.learned._replace(params=params))
    _, metrics = jax.jit(algorithm.step)(KEY, state)
    assert metrics["action_value"] == -1.5
