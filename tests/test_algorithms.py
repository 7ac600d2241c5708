"""One table of promises, kept by every algorithm, and what is special to each."""

import functools
import inspect
import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probe_envs
import pytest
from jax.interpreters import partial_eval
from zoo import CARTPOLE, GAUSSIAN, MASKED, PENDULUM, ZOO, adam, categorical, critic, separate

import pgjax
from pgjax import networks
from pgjax.algorithms import (
    a2c,
    a3c,
    acktr,
    actor_critic,
    ddpg,
    dqn,
    npg,
    ppo,
    q_learning,
    reinforce,
    sac,
    sarsa,
    td3,
    trpo,
)
from pgjax.experiment import checkpoints
from pgjax.improvement import natural_step
from pgjax.natural.kfac import LayerEigen, kfac_optimizer
from pgjax.training import Progress, advance, init_progress, split_run_key
from pgjax.types import Algorithm

KEY = jax.random.key(0)
ALGORITHMS = sorted(ZOO)
VALUE_BASED = [dqn, q_learning, sarsa]
DETERMINISTIC = [ddpg, td3]
STOCHASTIC = [a2c, a3c, acktr, actor_critic, npg, ppo, reinforce, sac, trpo]
MODULES = [*VALUE_BASED, *DETERMINISTIC, *STOCHASTIC]


@functools.cache
def compiled(name):
    """The algorithm, its init and its step, compiled once for all tests."""
    algorithm = ZOO[name]()
    return algorithm, jax.jit(algorithm.init), jax.jit(algorithm.step)


@functools.cache
def run(name):
    """Keys of three seeds, and `(keys, progress, start, length) -> (progress, metrics)` in one program."""
    algorithm = compiled(name)[0]
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    init_keys, run_keys = split_run_key(keys)
    start = jax.jit(lambda keys: init_progress(keys, algorithm))(init_keys)
    chunk = jax.jit(lambda progress, start, length: advance(run_keys, algorithm, progress, start, length, 4))
    return keys, start, chunk


@pytest.fixture(scope="class", params=ALGORITHMS)
def name(request):
    """A row of the table: all its tests run before those of the next, then its programs are dropped."""
    yield request.param
    for cached in (compiled, run):
        cached.cache_clear()
    jax.clear_caches()


def module_of(name):
    names = {m.__name__.split(".")[-1]: m for m in MODULES}
    return names[name.replace("actor-critic", "actor_critic").split("-")[0]]


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), tree)


def decomposed_matrices(tree):
    """The same tree with V Λ Vᵀ in place of the eigenvectors V and the eigenvalues Λ of a K-FAC's layers."""

    def matrices(leaf):
        if not isinstance(leaf, LayerEigen):
            return leaf
        values, vectors = leaf[::2], leaf[1::2]
        return [(v * jnp.broadcast_to(w, v.shape)) @ v.T for w, v in zip(values, vectors, strict=True)]

    return jax.tree.map(matrices, tree, is_leaf=lambda x: isinstance(x, LayerEigen))


class TestConformance:
    @pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.split(".")[-1])
    def test_make_has_the_promised_signature(self, module):
        signature = inspect.signature(module.make)
        names = list(signature.parameters)
        assert names[:2] == ["env", "env_params"]
        kinds = [p.kind for p in signature.parameters.values()]
        optional = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert kinds == sorted(kinds)
        assert all(p.default is not p.empty for p in optional)
        learned = inspect.get_annotations(module.State)["learned"]
        assert issubclass(module.Learned if learned is Any else learned, tuple)

    def test_the_table_knows_every_algorithm(self):
        files = {p.stem for p in pathlib.Path(ppo.__file__).parent.glob("*.py")} - {"__init__"}
        assert files == {m.__name__.split(".")[-1] for m in MODULES}
        assert {module_of(name) for name in ZOO} == set(MODULES)

    def test_shapes_and_dtypes_are_stable(self, name):
        algorithm, init, step = compiled(name)
        assert isinstance(algorithm, Algorithm)
        state = jax.eval_shape(init, KEY)
        after, metrics = jax.eval_shape(step, KEY, state)
        assert avals(after) == avals(state)
        assert all(m.shape == () for m in metrics.values())

    def test_the_second_step_compiles_nothing_and_learns(self, name):
        _, init, step = compiled(name)
        state = init(KEY)
        once, _ = step(jax.random.key(1), state)
        twice, metrics = step(jax.random.key(2), once)
        assert step._cache_size() == 1
        chex.assert_tree_all_finite((twice.learned, metrics))
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.learned, twice.learned)
        assert any(jax.tree.leaves(moved))

    def test_every_iteration_reports_steps_and_episodes(self, name):
        _, init, step = compiled(name)
        _, metrics = step(KEY, init(KEY))
        always = {"env_steps", "episodes", "episode_return_sum", "episode_length_sum"}
        kind = module_of(name)
        losses = {"value_loss"} if kind in VALUE_BASED else {"policy_loss"}
        entropy = {"entropy"} if kind in STOCHASTIC else set()
        assert always | losses | entropy | {"grad_norm"} <= set(metrics)
        assert metrics["env_steps"] > 0

    def test_in_pieces_as_in_one(self, name):
        _, start, chunk = run(name)
        whole, metrics = chunk(start, 0, 4)
        half, first = chunk(start, 0, 3)
        pieces, second = chunk(half, 3, 1)
        assert chunk._cache_size() == 1
        chex.assert_trees_all_equal(pieces, whole)
        for m, a, b in zip(*(jax.tree.leaves(x) for x in (metrics, first, second)), strict=True):
            np.testing.assert_array_equal(m, jnp.concatenate([a[:, :3], b[:, :1]], 1))

    def test_saved_and_restored_as_in_one(self, name, tmp_path):
        keys, start, chunk = run(name)
        whole, _ = chunk(start, 0, 4)
        tree = {"keys": keys, "progress": chunk(start, 0, 3)[0]}
        checkpoints.save(tmp_path, 3, tree, {}, keep=1)
        kept = checkpoints.restore(tmp_path, 3, jax.eval_shape(lambda: tree))
        np.testing.assert_array_equal(*(jax.random.key_data(k) for k in (kept["keys"], keys)))
        onwards, _ = chunk(jax.device_put(kept["progress"]), 3, 1)
        assert chunk._cache_size() == 1
        chex.assert_trees_all_equal(onwards, whole)

    def test_a_seed_among_others_is_the_seed_alone(self, name):
        """One iteration from the same state, to rounding; later chaos does the rest.

        Conjugate gradients on 32 samples multiply rounding by a hundred, so theirs is that of float64. Of
        eigen-decompositions the matrices are compared: their vectors, where eigenvalues are nearly equal,
        are any that rounding leaves.
        """
        solves = name.startswith(("npg", "trpo", "acktr"))
        with jax.enable_x64(solves):
            keys, start, chunk = run.__wrapped__(name) if solves else run(name)
            _, _, step = (compiled.__wrapped__ if solves else compiled)(name)
            together, _ = chunk(start, 0, 1)
            run_key = split_run_key(keys[2])[1]
            alone, _ = step(jax.random.fold_in(run_key, 0), jax.tree.map(lambda x: x[2], start.state))
            of_three = jax.tree.map(lambda x: x[2], together.state.learned)
            both = [decomposed_matrices(learned) for learned in (of_three, alone.learned)]
        rtol, atol = (1e-10, 1e-12) if solves else (1e-5, 1e-6)
        chex.assert_trees_all_close(*both, rtol=rtol, atol=atol)

    def test_seeds_differ(self, name):
        _, start, chunk = run(name)
        learned = jax.tree.leaves(chunk(start, 0, 1)[0].state.learned)
        assert any(not np.allclose(x[0], x[1]) for x in learned)

    def test_hyper_parameters_can_be_mapped_over(self, name):
        def learned(learning_rate, gamma):
            algorithm = ZOO[name](learning_rate=learning_rate, gamma=gamma)
            state = jax.eval_shape(algorithm.init, KEY)
            state = jax.tree.map(lambda x: jnp.full(x.shape, 0.1, x.dtype), state)
            return algorithm.step(KEY, state)[0].learned

        program = jax.make_jaxpr(jax.vmap(learned))(jnp.array([1e-3, 1e-2]), jnp.array([0.9, 0.99])).jaxpr
        # what is learned depends on both
        assert partial_eval.dce_jaxpr(program, [True] * len(program.outvars))[1] == [True, True]

    def test_a_grid_of_hyper_parameters_runs_in_one_program(self):
        def learned(learning_rate, gamma):
            algorithm = ZOO["a2c"](learning_rate=learning_rate, gamma=gamma)
            return pgjax.train(KEY, algorithm, 3)[0].learned

        rates, gammas = jnp.array([1e-3, 1e-1]), jnp.array([0.9, 0.5])
        grid = jax.jit(jax.vmap(learned))(rates, gammas)
        for i in range(2):
            alone = learned(float(rates[i]), float(gammas[i]))
            chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], grid), alone, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("name", ["ppo-masked", "dqn-masked"])
    def test_a_masked_action_is_never_taken(self, name):
        algorithm, init, step = compiled(name)
        state = step(KEY, init(KEY))[0]
        obs = {"obs": jnp.ones((64, 4)), "action_mask": jnp.zeros((64, 2), bool).at[:, 1].set(True)}
        assert (algorithm.act(KEY, state, obs) == 1).all()

    def test_lowers_for_all_platforms(self, name):
        algorithm = compiled(name)[0]
        key = jax.ShapeDtypeStruct((2,), jnp.uint32)
        state = jax.eval_shape(algorithm.init, KEY)
        step = jax.jit(lambda key, state: algorithm.step(jax.random.wrap_key_data(key), state))
        exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(key, state)
        assert exported.platforms == ("cpu", "cuda", "tpu")

    def test_act_is_deterministic_and_takes_a_batch(self, name):
        algorithm, init, _ = compiled(name)
        state = init(KEY)
        env, env_params = environment_of(name)
        obs = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(KEY, 5), env_params)[0]
        first, second = (algorithm.act(k, state, obs) for k in jax.random.split(KEY))
        assert first.shape[0] == 5
        np.testing.assert_array_equal(first, second)


def environment_of(name):
    if "masked" in name:
        return MASKED
    return PENDULUM if "continuous" in name or "squashed" in name else CARTPOLE


class TestKeys:
    @pytest.mark.parametrize(
        "name",
        [
            "ppo",
            "ppo-continuous",
            "a2c",
            "reinforce-critic",
            "actor-critic",
            "acktr",
            "a3c-corrected",
            "dqn-options",
            "sarsa",
            "q_learning",
            "td3-continuous",
            "ddpg-continuous",
            "sac-continuous",
            "sac-discrete",
            "trpo",
        ],
    )
    def test_no_key_of_a_run_is_used_twice(self, name):
        """A generator that writes down which key is split and which is drawn from, and how often."""
        used: list[tuple[int, ...]] = []
        folded: set[tuple[int, ...]] = set()
        threefry = jax.extend.random.threefry_prng_impl

        def note(key):
            used.append(tuple(np.asarray(key).tolist()))

        def split(key, shape):
            jax.debug.callback(note, key)
            return threefry.split(key, shape)

        def fold_in(key, data):
            jax.debug.callback(lambda key: folded.add(tuple(np.asarray(key).tolist())), key)
            return threefry.fold_in(key, data)

        def draw(key, bit_width, shape):
            jax.debug.callback(note, key)
            return threefry.random_bits(key, bit_width, shape)

        recording = jax.extend.random.define_prng_impl(
            key_shape=(2,),
            seed=threefry.seed,
            split=split,
            random_bits=draw,
            fold_in=fold_in,
            name=f"recording_{name}",
        )
        algorithm = ZOO[name]()
        jax.block_until_ready(pgjax.train(jax.random.key(7, impl=recording), algorithm, 2))
        jax.effects_barrier()
        assert len(used) > 20
        assert len(set(used)) == len(used)
        assert folded
        assert not folded & set(used)

    def test_evaluation_does_not_touch_the_training_stream(self):
        """A state holds no key: what evaluation draws cannot change what training draws."""
        for name in ALGORITHMS:
            leaves = jax.tree.leaves(jax.eval_shape(compiled(name)[1], KEY))
            assert not any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves)
            assert not any(x.dtype == jnp.uint32 for x in leaves)


class TestIdentities:
    def test_the_first_update_of_ppo_is_that_of_a2c(self):
        """One epoch, one minibatch, ratio 1: clipping and the importance weight do nothing."""
        options = {"num_envs": 4, "num_steps": 6, "gamma": 0.9, "lambda_": 0.8, "entropy_coef": 0.02}
        network, optimizer = separate(), optax.sgd(0.1)
        whole = {"num_epochs": 1, "num_minibatches": 1, "normalize_advantage": False}
        by_ppo = ppo.make(*CARTPOLE, network, optimizer, **options, **whole)
        by_a2c = a2c.make(*CARTPOLE, network, optimizer, **options)
        start = jax.jit(by_a2c.init)(KEY)
        learned = ppo.Learned(*start.learned, None, None, None)
        ppo_state, _ = jax.jit(by_ppo.step)(KEY, ppo.State(learned, start.env_carry, jnp.int32(0)))
        a2c_state, _ = jax.jit(by_a2c.step)(jax.random.split(KEY)[0], start)
        chex.assert_trees_all_close(ppo_state.learned.params, a2c_state.learned.params, rtol=1e-5, atol=1e-7)

    def test_reinforce_follows_the_policy_gradient(self):
        """With plain ascent at rate 1 the change of the parameters is the estimator's value."""
        actor = categorical()
        weight = lambda traj, valid, value: pgjax.total_return(traj.reward, valid)  # noqa: E731
        options = {"weight": weight, "num_episodes": 4, "max_steps": 12}
        options |= {"entropy_coef": 0.5, "discount_time": True, "gamma": 0.8}
        algorithm = reinforce.make(*CARTPOLE, actor, optax.sgd(1.0), **options)
        state = jax.jit(algorithm.init)(KEY)
        after, _ = jax.jit(algorithm.step)(KEY, state)
        params = state.learned.actor_params

        def policy(key, obs):
            return actor.apply(params, obs).sample_and_log_prob(key)

        traj, valid = jax.jit(lambda k: pgjax.rollout_episodes(k, policy, *CARTPOLE, 4, 12))(KEY)
        psi = pgjax.total_return(traj.reward, valid)
        psi = psi * pgjax.time_discount(traj.terminated, traj.truncated, gamma=0.8)

        def entropy(params):
            return jnp.where(valid, actor.apply(params, traj.obs).entropy(), 0.0).sum(0).mean()

        gradient = jax.tree.map(
            lambda g, h: g + 0.5 * h,
            pgjax.policy_gradient(actor.apply, params, traj, psi, valid),
            jax.grad(entropy)(params),
        )
        step = jax.tree.map(jnp.subtract, after.learned.actor_params, params)
        chex.assert_trees_all_close(step, gradient, rtol=1e-4, atol=1e-4)

    def test_actor_critics_discount_counts_the_steps_of_the_episode(self):
        """Three steps later in their episodes the same four environments push the actor γ³ times as far."""
        options = {"num_envs": 4, "num_updates": 1, "gamma": 0.5, "discount_time": True}
        optimizers = optax.sgd(1.0), optax.sgd(0.0)
        algorithm = actor_critic.make(*CARTPOLE, categorical(), critic(), *optimizers, **options)
        start, step = jax.jit(algorithm.init)(KEY), jax.jit(algorithm.step)
        later = start.env_carry._replace(episode_length=start.env_carry.episode_length + 3)
        first, then = (
            jax.tree.map(jnp.subtract, step(KEY, s)[0].learned.actor_params, s.learned.actor_params)
            for s in (start, start._replace(env_carry=later))
        )
        chex.assert_trees_all_close(then, jax.tree.map(lambda x: 0.125 * x, first), rtol=1e-3, atol=1e-6)
        assert optax.tree.norm(first) > 1e-3

    @pytest.mark.parametrize("module", [npg, trpo, acktr, a2c], ids=lambda m: m.__name__.split(".")[-1])
    def test_standardised_advantages_are_the_actors_alone(self, module):
        """The critic learns returns, whatever becomes of the advantages."""
        learned = []
        for normalize in (True, False):
            options: dict[str, Any] = {"num_envs": 4, "num_steps": 8, "normalize_advantage": normalize}
            if module is a2c:
                algorithm = a2c.make(*CARTPOLE, separate(), optax.sgd(0.1), **options)
            elif module is acktr:
                optimizers = kfac_optimizer(0.25), kfac_optimizer(0.25)
                algorithm = acktr.make(
                    *CARTPOLE, categorical(), critic(), *optimizers, num_updates=1, **options
                )
            else:
                options |= {"critic_epochs": 1, "critic_minibatches": 2}
                algorithm = module.make(*CARTPOLE, categorical(), critic(), adam(), **options)
            learned.append(jax.jit(algorithm.step)(KEY, jax.jit(algorithm.init)(KEY))[0].learned)
        if module is a2c:
            actors, critics = ([x.params["params"][name] for x in learned] for name in ("actor", "critic"))
        else:
            actors, critics = [x.actor_params for x in learned], [x.critic_params for x in learned]
        chex.assert_trees_all_close(*critics, rtol=1e-6, atol=1e-7)
        assert optax.tree.norm(jax.tree.map(jnp.subtract, *actors)) > 1e-5

    @pytest.mark.parametrize("options", [{}, {"entropy_coef": 0.1, "discount_time": True}])
    def test_reinforce_learns_the_same_in_pieces_of_time(self, options, x64):
        """And so do seeds together whose episodes are of different lengths."""
        whole, pieces = (
            ZOO["reinforce-critic"](num_episodes=3, max_steps=40, num_critic_steps=3, num_chunks=n, **options)
            for n in (1, 8)
        )
        keys = jax.random.split(KEY, 3)
        starts = jax.vmap(whole.init)(keys)
        wanted = jax.jit(jax.vmap(whole.step))(keys, starts)
        chex.assert_trees_all_close(jax.jit(jax.vmap(pieces.step))(keys, starts), wanted, rtol=1e-9)
        assert len(set(wanted[1]["env_steps"].tolist())) > 1
        alone = jax.jit(pieces.step)(keys[0], jax.tree.map(lambda x: x[0], starts))
        chex.assert_trees_all_close(alone, jax.tree.map(lambda x: x[0], wanted), rtol=1e-9)

    def test_a_weight_asks_the_critic_of_reinforce_about_any_observations(self, x64):
        """Of a rollout in pieces, and of single steps; values of single precision among doubles."""

        class Single:
            def init(self, key, obs):
                return critic().init(key, obs)

            def apply(self, params, obs):
                return critic().apply(params, obs).astype(jnp.float32)

        def weight(traj, valid, value):
            whole, one = value(traj.obs), value(traj.obs[3])
            jax.debug.callback(lambda *values: seen.append(values), whole[3], one)
            assert whole.dtype == one.dtype == jnp.float32
            return jnp.where(valid, whole, 0.0)

        seen: list[Any] = []
        options = {"weight": weight, "num_episodes": 2, "max_steps": 12, "num_chunks": 4}
        algorithm = reinforce.make(*CARTPOLE, categorical(), adam(), Single(), adam(), **options)
        jax.block_until_ready(jax.jit(algorithm.step)(KEY, jax.jit(algorithm.init)(KEY)))
        jax.effects_barrier()
        np.testing.assert_allclose(*seen[0], rtol=1e-6)

    def test_what_a_weight_makes_of_the_padding_goes_nowhere(self):
        """Episodes end after 12 of 40 steps at the latest; without a critic values are 0."""

        def weight(traj, valid, value):
            total = jnp.where(valid, traj.reward, 0.0).sum(0)
            longer = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), traj.obs)
            assert value(longer).shape == (valid.shape[0] + 1, valid.shape[1])
            return jnp.where(valid, total, jnp.nan)

        algorithm = ZOO["reinforce"](weight=weight, max_steps=40)
        state, metrics = jax.jit(algorithm.step)(KEY, jax.jit(algorithm.init)(KEY))
        chex.assert_tree_all_finite((state.learned, metrics))

    def test_reinforce_computes_nothing_after_the_last_episode(self):
        """The critic tells how many observations it was given: whole pieces, and not all ten of them."""
        seen = []

        class Watching:
            def init(self, key, obs):
                return jnp.zeros(())

            def apply(self, params, obs):
                jax.debug.callback(lambda x: seen.append(x.shape[0]), obs)
                return params + 0.0 * obs[..., 0]

        options = {"num_episodes": 2, "max_steps": 100, "num_critic_steps": 1, "num_chunks": 10}
        algorithm = reinforce.make(*CARTPOLE, categorical(), adam(), Watching(), adam(), **options)
        state = algorithm.init(KEY)
        seen.clear()
        _, metrics = jax.jit(algorithm.step)(KEY, state)
        jax.effects_barrier()
        assert set(seen) == {20}
        longest = -(-int(metrics["episode_length_sum"]) // 2)  # at least, of two episodes
        assert len(seen) % 2 == 0  # the values, and the critic's step
        assert -(-longest // 10) <= len(seen) // 2 < 10


class TestPPO:
    def test_a_kl_above_the_limit_stops_all_further_updates(self):
        frozen = ZOO["ppo"](max_kl=-1.0)  # no KL is below: not even the first update is made
        state = jax.jit(frozen.init)(KEY)
        after, metrics = jax.jit(frozen.step)(KEY, state)
        chex.assert_trees_all_equal(after.learned, state.learned)
        assert metrics["updates_skipped"] == 1.0

    @pytest.mark.parametrize(("target", "factor"), [(1e-9, 2.0), (1e9, 0.5)])
    def test_the_penalty_adapts_towards_its_target(self, target, factor):
        algorithm = ZOO["ppo"](clip_eps=jnp.inf, kl_coef=0.25, kl_target=target, learning_rate=0.05)
        state = jax.jit(algorithm.init)(KEY)
        after, _ = jax.jit(algorithm.step)(KEY, state)
        assert after.learned.kl_coef == 0.25 * factor

    def test_a_heavy_penalty_keeps_the_policy_nearer(self):
        def kl(coef):
            algorithm = ZOO["ppo"](clip_eps=jnp.inf, kl_coef=coef, learning_rate=0.01, num_epochs=8)
            return jax.jit(algorithm.step)(KEY, jax.jit(algorithm.init)(KEY))[1]["kl"]

        assert kl(100.0) < 0.2 * kl(0.0)

    def test_the_first_observation_is_normalised_like_all_others(self):
        """The statistics are filled before the first iteration, and its steps are counted."""
        _, init, step = compiled("ppo-continuous")
        state = init(KEY)
        assert state.learned.obs_moments.num_samples == 32
        assert state.learned.reward_scaling.moments.num_samples == 32
        after, metrics = step(KEY, state)
        assert metrics["env_steps"] == 64
        assert after.learned.obs_moments.num_samples == 64
        assert step(KEY, after)[1]["env_steps"] == 32

    def test_acting_and_learning_see_the_same_statistics(self):
        """Unclipped first-epoch ratios are 1, which they are not if the moments moved in between."""
        options = {"num_epochs": 1, "num_minibatches": 1}
        algorithm = ZOO["ppo-continuous"](**options)
        _, metrics = jax.jit(algorithm.step)(KEY, jax.jit(algorithm.init)(KEY))
        assert abs(metrics["approx_kl"]) < 1e-6
        assert metrics["clip_fraction"] == 0.0

    def test_the_penalty_takes_a_deviation_that_all_states_share(self):
        """`[D]` beside means `[..., D]`, as `DiagGaussian` allows, learns what `[..., D]` does."""

        class Narrow:
            def init(self, key, obs):
                return separate(GAUSSIAN).init(key, obs)

            def apply(self, params, obs):
                policy, value = separate(GAUSSIAN).apply(params, obs)
                return policy._replace(log_std=policy.log_std[(0,) * (policy.log_std.ndim - 1)]), value

        states = []
        for network in (Narrow(), separate(GAUSSIAN)):
            algorithm = ZOO["ppo-kl"](env=PENDULUM, network=network)
            states.append(jax.jit(algorithm.step)(KEY, jax.jit(algorithm.init)(KEY))[0].learned)
        chex.assert_trees_all_close(*states, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_minibatches": 3}, "num_minibatches=3 must divide"),
            ({"num_shards": 3}, "num_shards=3 must divide num_envs=4"),
            ({"num_minibatches": 0}, "num_minibatches=0"),
            ({"kl_target": 0.01}, "give kl_coef"),
            ({"num_epochs": 0}, "num_epochs must be at least 1"),
            ({"num_epochs": None}, "num_epochs must be a whole number, got None"),
            ({"num_envs": 4.0}, "num_envs must be a whole number, got 4.0"),
            ({"num_envs": True}, "num_envs must be a whole number, got True"),
            ({"num_steps": -8}, "num_steps must be at least 1"),
        ],
    )
    def test_impossible_options_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            ZOO["ppo"](**options)


@pytest.mark.parametrize("num_chunks", [0, 3, 600])
def test_reinforces_pieces_divide_its_steps(num_chunks):
    with pytest.raises(ValueError, match=f"num_chunks={num_chunks} must divide max_steps=500"):
        reinforce.make(*CARTPOLE, categorical(), adam(), num_chunks=num_chunks)


def test_a_critic_without_an_optimizer_is_refused():
    with pytest.raises(ValueError, match="belong together"):
        reinforce.make(*CARTPOLE, categorical(), adam(), critic())


def final(algorithm, num_iterations, seed=0):
    state, metrics = pgjax.train(jax.random.key(seed), algorithm, num_iterations)
    return state, metrics


MAKERS = {
    "ppo": lambda env, actor, rate=0.01, **o: ppo.make(
        env,
        None,
        separate(actor),
        adam(rate),
        **{"num_envs": 8, "num_steps": 16, "normalize_advantage": False} | o,
    ),
    "a2c": lambda env, actor, rate=0.01, **o: a2c.make(
        env, None, separate(actor), adam(rate), **{"num_envs": 8} | o
    ),
    "actor_critic": lambda env, actor, rate=0.01, **o: actor_critic.make(
        env, None, actor, critic(), adam(rate), adam(rate), **{"num_envs": 8} | o
    ),
    "trpo": lambda env, actor, rate=0.01, **o: trpo.make(
        env,
        None,
        actor,
        critic(),
        adam(rate),
        **{"num_envs": 8, "num_steps": 16, "max_kl": 0.03, "normalize_advantage": False} | o,
    ),
    "reinforce": lambda env, actor, rate=0.01, **o: reinforce.make(
        env,
        None,
        actor,
        adam(rate),
        critic(),
        adam(rate),
        **{"num_episodes": 32, "max_steps": 10, "num_critic_steps": 4} | o,
    ),
}
ITERATIONS = {"ppo": 60, "trpo": 60, "a2c": 600, "actor_critic": 100, "reinforce": 150}


def value_of(name, state):
    learned = state.learned
    if name in ("ppo", "a2c"):
        return lambda obs: separate().apply(learned.params, obs)[1]
    return lambda obs: critic().apply(learned.critic_params, obs)


@pytest.mark.slow
class TestProbes:
    """Each environment isolates one ability; the answer is known, the tolerance is stated."""

    @pytest.mark.parametrize("name", sorted(MAKERS))
    @pytest.mark.parametrize(
        ("env", "truth"),
        [
            (probe_envs.predictable_value, {(1.0, 0.0): 1.0, (-1.0, 0.0): -1.0}),
            (probe_envs.two_steps, {(1.0, 0.0): 0.9, (1.0, 1.0): 1.0}),
        ],
        ids=["value of an observation", "discount over two steps"],
    )
    def test_the_critic_learns(self, name, env, truth):
        state, _ = final(MAKERS[name](env, categorical(), gamma=0.9), ITERATIONS[name])
        found = value_of(name, state)(jnp.array(list(truth)))
        np.testing.assert_allclose(found, list(truth.values()), atol=0.1)

    @pytest.mark.parametrize("name", ["ppo", "a2c", "actor_critic", "trpo"])
    def test_a_time_limit_keeps_the_future(self, name):
        """Reward 1 for ever is worth 10 at γ = 0.9, whatever limit is put on top."""
        algorithm = MAKERS[name](probe_envs.endless, categorical(), gamma=0.9, rate=0.03)
        state, _ = final(algorithm, 4 * ITERATIONS[name])
        assert value_of(name, state)(jnp.array([1.0, 0.0])) == pytest.approx(10.0, abs=0.1)

    def test_a_time_limit_keeps_the_future_of_action_values_too(self):
        q_network = networks.QNetwork(2, networks.MLP(hidden=(8,)))
        heads_and_optimizers = categorical(), q_network, adam(0.01), adam(0.03)
        options = {"gamma": 0.9, "all_action": True, "entropy_coef": 1.0}  # so that both actions are tried
        algorithm = actor_critic.make(probe_envs.endless, None, *heads_and_optimizers, **options)
        state, _ = final(algorithm, 400)
        q = q_network.apply(state.learned.critic_params, jnp.array([1.0, 0.0]))
        np.testing.assert_allclose(q, 10.0, atol=0.5)

    @pytest.mark.parametrize("name", ["ppo", "a2c"])
    def test_an_end_ends_the_future(self, name):
        """Ten steps that the observation does not tell apart: at most 6.51, the value of the first."""
        algorithm = MAKERS[name](probe_envs.ten_steps, categorical(), gamma=0.9, rate=0.03)
        state, _ = final(algorithm, 4 * ITERATIONS[name])
        assert 1.0 < value_of(name, state)(jnp.array([1.0, 0.0])) < 6.51

    @pytest.mark.parametrize("name", sorted(MAKERS))
    @pytest.mark.parametrize(
        "env",
        [probe_envs.action_dependence, probe_envs.obs_and_action],
        ids=["action", "observation and action"],
    )
    def test_the_actor_learns(self, name, env):
        algorithm = MAKERS[name](env, categorical(), gamma=0.9)
        state, _ = final(algorithm, ITERATIONS[name])
        action = algorithm.act(KEY, state, jnp.array([[1.0, 0.0], [-1.0, 0.0]]))
        assert action[0] == 1
        assert env is probe_envs.action_dependence or action[1] == 0  # the other never sees an obs of −1

    @pytest.mark.parametrize("name", ["ppo", "a2c", "reinforce", "trpo"])
    def test_a_gaussian_actor_finds_the_best_action(self, name):
        actor = networks.GaussianActor(1, networks.MLP(hidden=(8,)), log_std_init=-1.0)
        algorithm = MAKERS[name](probe_envs.continuous, actor, gamma=0.9)
        state, _ = final(algorithm, 2 * ITERATIONS[name])
        obs = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
        np.testing.assert_allclose(algorithm.act(KEY, state, obs)[:, 0], [0.5, -0.5], atol=0.15)

    def test_the_all_action_gradient_learns_as_well(self):
        env = probe_envs.obs_and_action
        networks_and_optimizers = (
            categorical(),
            networks.QNetwork(2, networks.MLP(hidden=(8,))),
            adam(0.01),
            adam(0.01),
        )
        algorithm = actor_critic.make(env, None, *networks_and_optimizers, all_action=True)
        state, metrics = final(algorithm, 100)
        obs = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
        np.testing.assert_array_equal(algorithm.act(KEY, state, obs), [1, 0])
        assert abs(metrics["policy_loss"][-1]) > 0.1  # −Σ π Q, and not the advantage's, which is 0


BOX = {
    "num_envs": 8,
    "num_updates": 400,
    "batch_size": 32,
    "capacity": 2000,
    "warmup_steps": 200,
    "gamma": 0.9,
}
FINITE = BOX | {"exploration_steps": 2000}
ONLINE = {"num_envs": 8, "num_updates": 400, "gamma": 0.9, "epsilon_start": 1.0, "exploration_steps": 2000}


def off_policy(name, env):
    """An algorithm with action values, and what gives Q(s, a) from its state."""
    torso, rate = networks.MLP(hidden=(16,)), 0.01
    finite = networks.QNetwork(2, torso)
    soft = {"learn_alpha": False, "alpha": 0.03}  # less, and about half of the seeds stop exploring too early
    pair = networks.ActionCritic((-1.0,), (1.0,), torso)
    if name in ("ddpg", "td3", "sac"):
        heads = {"sac": networks.TanhGaussianActor}
        actor = heads.get(name, networks.DeterministicActor)((-1.0,), (1.0,), torso)
        # an actor as fast as its critic runs into the corner of the box that the untrained critic likes
        rates = (rate, rate, rate) if name == "sac" else (0.1 * rate, rate)
        module = {"ddpg": ddpg, "td3": td3, "sac": sac}[name]
        fixed = soft if name == "sac" else {}
        algorithm = module.make(env, None, actor, pair, *map(adam, rates), **BOX, **fixed, tau=0.05)
        return (
            algorithm,
            lambda learned, obs, action: (
                networks.Ensemble(pair, 2).apply(learned.critic_params, (obs, action)).mean(0)
            ),
        )
    if name == "sac-discrete":
        actor, optimizers = networks.CategoricalActor(2, torso.clone()), [adam(rate) for _ in range(3)]
        algorithm = sac.make(env, None, actor, finite, *optimizers, **BOX, **soft, tau=0.05)
        return (
            algorithm,
            lambda learned, obs, action: (
                networks.Ensemble(finite, 2).apply(learned.critic_params, obs).mean(0)
            ),
        )
    module = {"dqn": dqn, "q_learning": q_learning, "sarsa": sarsa}[name]
    options = FINITE | {"target_period": 10} if name == "dqn" else ONLINE
    algorithm = module.make(env, None, finite, adam(rate), **options)
    return algorithm, lambda learned, obs, action: finite.apply(learned.params, obs)


OBS = jnp.array([[1.0, 0.0], [-1.0, 0.0]])


@pytest.mark.slow
class TestOffPolicyProbes:
    """The same abilities, of those that learn action values: four seeds, and every one of them."""

    def best_actions(self, name, env, num_iterations):
        algorithm, value = off_policy(name, env)
        state, _ = pgjax.train(jax.vmap(jax.random.key)(jnp.arange(4)), algorithm, num_iterations)
        return jax.vmap(lambda state: algorithm.act(KEY, state, OBS))(state), state, value

    @pytest.mark.parametrize("name", ["dqn", "q_learning", "sarsa", "sac-discrete", "ddpg", "td3", "sac"])
    def test_a_time_limit_keeps_the_future(self, name):
        """Reward 1 for ever is worth 10 at γ = 0.9: truncation is stored as truncation."""
        env = probe_envs.endless_box if name in ("ddpg", "td3", "sac") else probe_envs.endless
        action, state, value = self.best_actions(name, env, 4)
        found = jax.vmap(lambda learned, action: value(learned, OBS[:1], action[:1]))(state.learned, action)
        np.testing.assert_allclose(found, 10.0, atol=0.5)

    @pytest.mark.parametrize("name", ["dqn", "q_learning", "sarsa", "sac-discrete"])
    def test_the_better_action_is_found(self, name):
        action, _, _ = self.best_actions(name, probe_envs.obs_and_action, 1)
        np.testing.assert_array_equal(action, [[1, 0]] * 4)

    @pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])
    def test_the_best_action_of_a_box_is_found(self, name):
        action, _, _ = self.best_actions(name, probe_envs.continuous, 2)
        np.testing.assert_allclose(action[..., 0], [[0.5, -0.5]] * 4, atol=0.15)


class TestNatural:
    def batch(self, module, **options):
        """A made algorithm after one step, with its metrics."""
        options = {"num_envs": 4, "num_steps": 8, "critic_epochs": 1, "critic_minibatches": 2} | options
        algorithm = module.make(*CARTPOLE, categorical(), critic(), adam(), **options)
        state = jax.jit(algorithm.init)(KEY)
        new, metrics = jax.jit(algorithm.step)(jax.random.key(1), state)
        return state, new, metrics

    @pytest.mark.last_bits
    def test_trpo_with_one_full_step_accepted_is_npg(self):
        _, by_trpo, metrics = self.batch(trpo, max_kl=1e-4)
        assert metrics["line_search_index"] == 0
        _, by_npg, _ = self.batch(npg, max_kl=1e-4)
        chex.assert_trees_all_close(by_trpo.learned, by_npg.learned, rtol=1e-6)

    def test_trpo_keeps_its_bound_and_improves(self):
        _, _, metrics = self.batch(trpo, max_kl=0.05, count_damping=False)
        assert 0 < metrics["kl"] <= 0.05
        assert metrics["improvement"] > 0
        assert metrics["predicted_improvement"] > 0

    def test_a_step_that_never_fits_leaves_the_actor_alone_and_the_critic_learning(self):
        old, new, metrics = self.batch(trpo, num_backtracks=1, max_kl=1e4, damping=1e-6, count_damping=False)
        assert metrics["line_search_index"] == -1
        chex.assert_trees_all_equal(old.learned.actor_params, new.learned.actor_params)
        moved = jax.tree.map(
            lambda a, b: (a != b).any(), old.learned.critic_params, new.learned.critic_params
        )
        assert any(jax.tree.leaves(moved))

    def test_npg_with_a_fixed_step_is_the_natural_gradient_times_it(self):
        small = self.batch(npg, max_kl=None, step_size=0.01)
        large = self.batch(npg, max_kl=None, step_size=0.02)
        change = [
            jax.tree.map(jnp.subtract, new.learned.actor_params, old.learned.actor_params)
            for old, new, _ in (small, large)
        ]
        twice = jax.tree.map(lambda x: 2 * x, change[0])
        chex.assert_trees_all_close(twice, change[1], rtol=1e-3, atol=1e-6)

    def test_the_bonus_for_entropy_is_a_part_of_the_improvement(self, x64):
        actor, (obs_key, key) = categorical(), jax.random.split(KEY)
        obs, action = jax.random.normal(obs_key, (6, 2, 4)), jnp.arange(12).reshape(6, 2) % 2
        params = jax.tree.map(  # some way from uniform
            lambda x: x + jnp.sin(jnp.arange(x.size)).reshape(x.shape), actor.init(key, obs)
        )
        zeros, flags = jnp.zeros((6, 2)), jnp.zeros((6, 2), bool)
        traj = pgjax.Transition(obs, action, zeros, zeros, obs, flags, flags)
        advantage = jnp.sin(jnp.arange(12.0)).reshape(6, 2)

        def objective(params, weight):
            policy = actor.apply(params, obs)
            return (policy.log_prob(action) * advantage).mean() + weight * policy.entropy().mean()

        sizes = {"damping": 0.1, "cg_iters": 5, "fisher_stride": 1, "num_chunks": 1}
        step = natural_step(actor, params, traj, advantage, entropy_coef=0.7, **sizes)
        plain = natural_step(actor, params, traj, advantage, entropy_coef=0.0, **sizes)
        chex.assert_trees_all_close(step.gradient, jax.grad(objective)(params, 0.7), rtol=1e-9, atol=1e-12)
        chex.assert_trees_all_close(plain.gradient, jax.grad(objective)(params, 0.0), rtol=1e-9, atol=1e-12)
        new = jax.tree.map(lambda x: 0.9 * x, params)
        entropies = [actor.apply(p, obs).entropy().mean() for p in (params, new)]
        bonus = step.surrogate(new)[0] - plain.surrogate(new)[0]
        np.testing.assert_allclose(bonus, 0.7 * (entropies[1] - entropies[0]), rtol=1e-9)
        assert abs(bonus) > 1e-4
        np.testing.assert_allclose(step.surrogate(params)[0], 0.0, atol=1e-15)
        old, policy = (actor.apply(p, obs) for p in (params, new))
        np.testing.assert_allclose(step.surrogate(new)[1], old.kl(policy).mean(), rtol=1e-9)
        assert abs(old.kl(policy).mean() - policy.kl(old).mean()) > 1e-5
        strided = natural_step(
            actor, params, traj, advantage, entropy_coef=0.7, **sizes | {"fisher_stride": 2}
        )
        direction, _ = pgjax.natural_gradient(
            actor.apply, params, obs[::2], step.gradient, damping=0.1, cg_iters=5
        )
        chex.assert_trees_all_close(strided.direction, direction, rtol=1e-9, atol=1e-12)

    def test_the_damping_counts_as_curvature_or_not(self):
        """A step of the wanted KL to second order; shorter, where the damping has a part in its length."""
        kl, damped = (
            self.batch(npg, max_kl=1e-4, cg_iters=20, count_damping=count)[2]["kl"] for count in (False, True)
        )
        np.testing.assert_allclose(kl, 1e-4, rtol=0.1)
        assert damped < 0.9e-4

    @pytest.mark.parametrize("module", [npg, trpo], ids=["npg", "trpo"])
    def test_the_bonus_for_entropy_is_handed_on(self, module):
        plain, metrics = (self.batch(module, entropy_coef=w, max_kl=1e-6)[2] for w in (0.0, 10.0))
        assert abs(metrics["grad_norm"] - plain["grad_norm"]) > 0.01 * plain["grad_norm"]
        # a small step promises what it keeps: both count the bonus
        np.testing.assert_allclose(metrics["improvement"], metrics["predicted_improvement"], rtol=0.1)

    @pytest.mark.parametrize("module", [npg, trpo], ids=["npg", "trpo"])
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_shards": 3}, "num_shards=3 must divide num_envs=4"),
            ({"critic_minibatches": 5}, "critic_minibatches=5 must divide"),
            ({"fisher_stride": 0}, "fisher_stride must be at least 1"),
            ({"critic_epochs": 0}, "critic_epochs must be at least 1"),
            ({"num_steps": -8}, "num_steps must be at least 1"),
            ({"num_chunks": 3}, "num_chunks=3 must divide the 8 time steps"),
        ],
    )
    def test_impossible_options_are_refused(self, module, options, message):
        with pytest.raises(ValueError, match=message):
            self.batch(module, **options)

    def test_npg_needs_one_kind_of_step(self):
        for options in ({"max_kl": None}, {"max_kl": 0.01, "step_size": 0.1}):
            with pytest.raises(ValueError, match="either max_kl"):
                self.batch(npg, **options)


def test_progress_is_what_the_loop_carries():
    assert Progress._fields == ("state", "diverged_at")
