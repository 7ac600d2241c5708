"""In which type numbers are: float32, float64 where x64 is on, bfloat16 inside a torso and nowhere else."""

import json
import math
from collections import Counter
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probe_envs
import pytest
import zoo
from jax.flatten_util import ravel_pytree

import pgjax
from pgjax import networks
from pgjax.algorithms import dqn, ppo, sac
from pgjax.experiment import cli, parts, presets, store
from pgjax.losses.value import clipped_value_loss
from pgjax.natural import kfac

KEY = jax.random.key(0)
LOW, HIGH = (-2.0, 0.0), (2.0, 1.0)


def torso(dtype=None, **options):
    return networks.MLP((8, 4), dtype=dtype, **options)


def features(obs):
    return jnp.stack([obs, 2.0 * obs], -2)


def nets(dtype=None, **head):
    """Every network, and an observation of it."""
    vector, image = jnp.ones((3, 5)), jnp.ones((3, 6, 6, 2))
    kinds = {
        "categorical": (networks.CategoricalActor(3, torso(dtype), **head), vector),
        "gaussian": (networks.GaussianActor(2, torso(dtype), **head), vector),
        "tanh_gaussian": (networks.TanhGaussianActor(LOW, HIGH, torso(dtype), **head), vector),
        "critic": (networks.Critic(torso(dtype), **head), vector),
        "cnn": (networks.Critic(networks.CNN(4, 8, dtype=dtype), **head), image),
        "q": (networks.QNetwork(3, torso(dtype), **head), vector),
        "dueling": (networks.DuelingQNetwork(3, torso(dtype), **head), vector),
        "deterministic": (networks.DeterministicActor(LOW, HIGH, torso(dtype), **head), vector),
        "pair": (networks.ActionCritic(LOW, HIGH, torso(dtype), **head), (vector, jnp.ones((3, 2)))),
        "ensemble": (networks.Ensemble(networks.Critic(torso(dtype), **head), 2), vector),
        "linear_q": (networks.LinearQ(2, lambda obs: obs, **head), vector),
        "linear_softmax": (networks.LinearSoftmax(features, **head), vector),
    }
    shared = networks.features_as_they_are
    heads = networks.CategoricalActor(3, shared, **head), networks.Critic(shared, **head)
    kinds["both"] = networks.ActorCritic(*heads, torso(dtype)), vector
    return kinds


NETS = tuple(nets())
WITH_TORSO = [name for name in NETS if not name.startswith("linear")]


def floating(tree: Any) -> dict[str, str]:
    """The types of a tree's floating leaves, by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): str(x.dtype) for path, x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)
    }


def others(tree: Any, dtype: str) -> dict[str, str]:
    """The floating leaves that are of another type."""
    found = floating(tree)
    assert found
    return {path: kind for path, kind in found.items() if kind != dtype}


def equations(jaxpr: Any) -> list[Any]:
    """All equations of a program, those of its loops and functions included."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += equations(inner)
    return found


def types_of(jaxpr: Any) -> set[str]:
    return {str(v.aval.dtype) for e in equations(jaxpr) for v in e.outvars if hasattr(v.aval, "dtype")}


def products(jaxpr: Any) -> Counter[tuple[str, str]]:
    """How many matrix products and convolutions there are, by the types that they multiply."""
    kinds = ("dot_general", "conv_general_dilated")
    return Counter(
        tuple(str(v.aval.dtype) for v in e.invars[:2]) for e in equations(jaxpr) if e.primitive.name in kinds
    )


BF16, F32 = ("bfloat16", "bfloat16"), ("float32", "float32")


# Written against flax alone: what the networks are where no type is asked for.
class Plain(nn.Module):
    """The numbers that a head returns, one after the other."""

    kind: str
    product: Any = None

    @nn.compact
    def __call__(self, obs):
        x = PlainTorso(self.kind, self.product, name="torso")(obs)
        if self.kind == "categorical":
            return (self.dense(3, 0.01)(x),)
        if self.kind == "gaussian":
            mean = self.dense(2, 0.01)(x)
            log_std = self.param("log_std", nn.initializers.constant(0.0), (2,))
            return mean, jnp.broadcast_to(log_std, mean.shape)
        if self.kind == "tanh_gaussian":
            mean, raw = self.dense(2, 0.01)(x), jnp.tanh(self.dense(2, 0.01)(x))
            return mean, -5.0 + 3.5 * (raw + 1.0)
        if self.kind == "q":
            return (self.dense(3, 1.0)(x),)
        if self.kind == "dueling":
            value, advantage = self.dense(1, 1.0)(x), self.dense(3, 1.0)(x)
            return (value + advantage - advantage.mean(-1, keepdims=True),)
        return (self.dense(1, 1.0)(x)[..., 0],)

    def dense(self, size, scale):
        return nn.Dense(size, kernel_init=nn.initializers.orthogonal(scale), dot_general=self.product)


class PlainTorso(nn.Module):
    kind: str
    product: Any = None

    @nn.compact
    def __call__(self, obs):
        gain = nn.initializers.orthogonal(math.sqrt(2.0))
        if self.kind == "cnn":
            x = nn.relu(nn.Conv(4, (3, 3), padding="VALID", kernel_init=gain)(obs.astype(float)))
            x = x.reshape(*x.shape[:-3], -1)
            return nn.relu(nn.Dense(8, kernel_init=gain, dot_general=self.product)(x))
        x = obs.reshape(*obs.shape[:-1], -1).astype(float)
        for size in (8, 4):
            x = nn.tanh(nn.Dense(size, kernel_init=gain, dot_general=self.product)(x))
        return x


@pytest.mark.parametrize(
    "kind", ["categorical", "gaussian", "tanh_gaussian", "critic", "cnn", "q", "dueling"]
)
def test_where_no_type_is_asked_for_the_network_is_flax_s_own(kind, rng):
    """The same parameters and outputs bit for bit, and not one operation more, but for convolutions."""
    net, example = nets()[kind]
    obs = jnp.asarray(rng.normal(size=example.shape), jnp.float32)
    params, twin = net.init(KEY, obs), Plain(kind).init(KEY, obs)
    chex.assert_trees_all_equal(params, twin)
    wanted = Plain(kind).apply(twin, obs)
    for found, x in zip(jax.tree.leaves(net.apply(params, obs)), wanted, strict=False):
        if kind == "cnn":  # on CPUs its convolution is another product, equal to rounding
            np.testing.assert_allclose(found, x, rtol=1e-5)
        else:
            np.testing.assert_array_equal(found, x)
    if kind == "cnn":
        return

    def count(apply):
        return Counter(e.primitive.name for e in equations(jax.make_jaxpr(apply)(params, obs).jaxpr))

    # whichever way the layers multiply, types have no part in it
    whole = count(Plain(kind, networks.dense(1, 1.0).dot_general).apply)
    if kind == "tanh_gaussian":  # the bounds of the box
        whole += Counter({"broadcast_in_dim": 2})
    assert count(net.apply) == whole


class TestParameters:
    @pytest.mark.parametrize("name", NETS)
    def test_are_float32_and_so_is_what_comes_out(self, name):
        net, obs = nets()[name]
        params = net.init(KEY, obs)
        assert not others((params, net.apply(params, obs)), "float32")

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("name", NETS)
    def test_are_float64_where_x64_is_on(self, name):
        net, obs = nets()[name]
        obs = jax.tree.map(lambda x: x.astype(jnp.float32), obs)  # as environments give it, some of them
        params = net.init(KEY, obs)
        assert not others((params, net.apply(params, obs)), "float64")

    @pytest.mark.usefixtures("x64")
    def test_are_drawn_and_used_in_float64(self, rng):
        net, obs = networks.Critic(networks.MLP((8,))), rng.normal(size=(5, 8))
        params = net.init(KEY, obs)["params"]
        hidden, head = params["torso"]["Dense_0"], params["Dense_0"]
        kernel = np.asarray(hidden["kernel"])
        np.testing.assert_allclose(kernel.T @ kernel, 2.0 * np.eye(8), atol=1e-14)
        expected = np.tanh(obs @ kernel) @ np.asarray(head["kernel"])[:, 0]  # biases begin at zero
        np.testing.assert_allclose(net.apply({"params": params}, obs), expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.usefixtures("x64")
    def test_are_float32_where_that_is_asked_for(self):
        net = networks.GaussianActor(2, torso(param_dtype=jnp.float32), param_dtype=jnp.float32)
        obs = jnp.ones(5, jnp.float32)
        params = net.init(KEY, obs)
        assert not others((params, net.apply(params, obs)), "float32")

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64, jnp.int32])
    def test_are_nothing_else(self, dtype):
        for net in (
            networks.Critic(torso(), param_dtype=dtype),
            torso(param_dtype=dtype),
            networks.LinearQ(2, lambda obs: obs, param_dtype=dtype),
        ):
            with pytest.raises(ValueError, match=rf"not {jnp.dtype(dtype)}.*dtype=jnp\.bfloat16"):
                net.init(KEY, jnp.ones(5))
        with pytest.raises(ValueError, match="float32"):
            networks.CNN(param_dtype=dtype).init(KEY, jnp.ones((6, 6, 2)))

    def test_a_torso_computes_in_no_integers(self):
        with pytest.raises(ValueError, match="inexact"):
            torso(jnp.int32).init(KEY, jnp.ones(5))


@pytest.mark.usefixtures("x64")
class TestFloat64:
    @pytest.mark.parametrize("name", zoo.ZOO)
    def test_all_that_an_algorithm_keeps_and_says_is_float64(self, name):
        algorithm = zoo.ZOO[name]()
        state = jax.eval_shape(algorithm.init, KEY)
        new, metrics = jax.eval_shape(algorithm.step, KEY, state)
        assert not others((state, new, metrics), "float64")
        assert floating(state) == floating(new)

    @pytest.mark.parametrize("name", sorted(zoo.ZOO))
    def test_not_one_operation_is_in_float32(self, name):
        algorithm = zoo.ZOO[name]()
        state = jax.eval_shape(algorithm.init, KEY)
        for function in (
            lambda: jax.make_jaxpr(algorithm.init)(KEY),
            lambda: jax.make_jaxpr(algorithm.step)(KEY, state),
        ):
            assert "float64" in types_of(function().jaxpr)
            assert "float32" not in types_of(function().jaxpr)

    @pytest.mark.parametrize(
        ("env", "actor"),
        [
            (zoo.CARTPOLE, zoo.categorical()),
            (zoo.PENDULUM, zoo.GAUSSIAN),
            (zoo.PENDULUM, zoo.SQUASHED),
            (
                pgjax.envs.make("FrozenLake-misc"),
                networks.CategoricalActor(4, networks.MLP((8,), nn.tanh, 0, 16)),
            ),
        ],
        ids=["categorical", "gaussian", "squashed", "a reward in float32"],
    )
    def test_transitions_and_estimates_are_float64(self, env, actor):
        def collect(key):
            carry = pgjax.reset_envs(key, *env, 2)
            params = actor.init(key, carry.obs)
            critic = networks.Critic(actor.torso.clone())
            value = critic.apply(critic.init(key, carry.obs), carry.obs)

            def policy(key, obs):
                return actor.apply(params, obs).sample_and_log_prob(key)

            _, traj, _ = pgjax.rollout(key, carry, policy, *env, 3)
            value = jnp.broadcast_to(value, traj.reward.shape)
            flags = traj.terminated, traj.truncated
            return traj, pgjax.gae(traj.reward, value, value, *flags, gamma=0.9, lambda_=0.8)

        traj, advantage = jax.eval_shape(collect, KEY)
        assert not others((traj, advantage), "float64")
        assert {traj.log_prob.dtype, traj.reward.dtype, advantage.dtype} == {jnp.dtype("float64")}

    @pytest.mark.parametrize(
        ("algorithm", "changes"),
        [
            ("ppo", {"normalize_obs": True}),
            ("dqn", {}),
            ("sac", {}),
            ("acktr", {"network": {"torso": "mlp"}}),
        ],
    )
    def test_an_environment_s_float32_stays_in_its_observations(self, algorithm, changes):
        """MinAtar shows float32 whatever x64 says; stored observations are what the environment gave."""
        algorithm = presets.build(presets.preset(algorithm, "Breakout-MinAtar", **changes))
        state = jax.eval_shape(algorithm.init, KEY)
        new, metrics = jax.eval_shape(algorithm.step, KEY, state)
        left = others((state, new), "float64")
        assert left
        assert all(path.endswith(("obs", "next_obs")) for path in left)
        assert not others(metrics, "float64")


def networks_in_bfloat16(monkeypatch):
    """The zoo's torsos, in bfloat16."""
    for name in ("TORSO", "OTHER_TORSO"):
        monkeypatch.setattr(zoo, name, networks.MLP((8,), dtype=jnp.bfloat16))
    monkeypatch.setattr(
        zoo, "GAUSSIAN", networks.GaussianActor(1, networks.MLP((8,), nn.relu, dtype=jnp.bfloat16))
    )
    squashed = networks.TanhGaussianActor((-2.0,), (2.0,), networks.MLP((8,), dtype=jnp.bfloat16))
    monkeypatch.setattr(zoo, "SQUASHED", squashed)


class TestBfloat16:
    @pytest.mark.parametrize("name", WITH_TORSO)
    def test_is_what_the_torso_multiplies_and_the_head_does_not(self, name):
        net, obs = nets(jnp.bfloat16)[name]
        params = net.init(KEY, obs)
        out = net.apply(params, obs)
        assert not others((params, out), "float32")
        heads = {"tanh_gaussian": 2, "dueling": 2, "both": 2}.get(name, 1)
        program = jax.make_jaxpr(net.apply)(params, obs).jaxpr
        assert products(program) == {BF16: 2, F32: heads}
        plain, _ = nets()[name]
        assert "bfloat16" not in types_of(jax.make_jaxpr(plain.apply)(params, obs).jaxpr)
        chex.assert_trees_all_equal(params, plain.init(KEY, obs))
        chex.assert_trees_all_close(out, plain.apply(params, obs), rtol=0.02, atol=0.02)

    def test_is_not_that_of_a_value(self):
        """Values around 100 are told apart by less than the 0.5 that lies between two bfloat16 there."""
        critic, obs = (
            networks.Critic(networks.MLP((64,), dtype=jnp.bfloat16)),
            jnp.linspace(0.0, 0.1, 50)[:, None],
        )
        params = critic.init(KEY, obs)
        params["params"]["Dense_0"]["bias"] += 100.0
        assert len(set(critic.apply(params, obs).tolist())) > 10

    def test_the_gradient_of_ppos_loss_is_near_that_of_float32(self):
        """Within 3 % of its norm over 10 seeds; the worst of 30 was 1.4 %."""

        def network(dtype):
            actor = networks.CategoricalActor(2, networks.MLP(dtype=dtype))
            return networks.ActorCritic(actor, networks.Critic(networks.MLP(dtype=dtype)))

        def loss(params, dtype, obs, action, old, advantage, old_value, target):
            policy, value = network(dtype).apply(params, obs)
            surrogate = pgjax.clipped_surrogate_loss(policy.log_prob(action), old, advantage, clip_eps=0.2)
            fit = clipped_value_loss(value, old_value, target, clip_eps=0.2)
            return (surrogate + 0.5 * fit - 0.01 * policy.entropy()).mean()

        @jax.jit
        def gradients(key):
            keys = jax.random.split(key, 7)
            obs = jax.random.normal(keys[0], (256, 4))
            params = network(None).init(keys[1], obs)
            flat, unravel = ravel_pytree(params)
            params = unravel(flat + 0.1 * jax.random.normal(keys[2], flat.shape))
            policy, value = network(None).apply(params, obs)
            action = policy.sample(keys[3])
            old = policy.log_prob(action) + 0.05 * jax.random.normal(keys[4], (256,))
            advantage, target = jax.random.normal(keys[5], (2, 256))
            batch = obs, action, old, advantage, value + 0.05, value + target
            return [jax.grad(loss)(params, dtype, *batch) for dtype in (None, jnp.bfloat16)]

        for seed in range(10):
            wide, narrow = gradients(jax.random.key(seed))
            assert not others(narrow, "float32")
            wide, narrow = (ravel_pytree(g)[0] for g in (wide, narrow))
            assert 0 < jnp.linalg.norm(wide - narrow) <= 0.03 * jnp.linalg.norm(wide)

    def test_the_gradient_is_computed_in_bfloat16_too(self):
        """Of two layers: two products forward, two for the weights, at least one for what lies between."""
        net, obs = nets(jnp.bfloat16)["critic"]
        params = net.init(KEY, obs)
        program = jax.make_jaxpr(jax.grad(lambda params: net.apply(params, obs).sum()))(params).jaxpr
        found = products(program)
        assert set(found) == {BF16, F32}
        assert found[BF16] >= 5
        assert found[F32] == 3  # the head's

    def test_estimators_and_losses_get_float32(self, monkeypatch):
        networks_in_bfloat16(monkeypatch)
        seen = {}
        for name in ("gae", "standardize", "clipped_surrogate_loss", "clipped_value_loss", "approximate_kl"):

            def spy(*args, name=name, function=getattr(ppo, name), **options):
                seen[name] = {str(x.dtype) for x in args if jnp.issubdtype(x.dtype, jnp.floating)}
                return function(*args, **options)

            monkeypatch.setattr(ppo, name, spy)
        algorithm = zoo.ZOO["ppo"](value_clip_eps=0.2)
        program = jax.make_jaxpr(lambda key: algorithm.step(key, algorithm.init(key)))(KEY).jaxpr
        assert BF16 in products(program)
        assert len(seen) == 5
        assert set.union(*seen.values()) == {"float32"}

    @pytest.mark.parametrize("name", zoo.ZOO)
    def test_all_that_an_algorithm_keeps_and_says_is_float32(self, name, monkeypatch):
        """Parameters, targets, optimizer, curvature, replay and metrics, before a step and after it."""
        networks_in_bfloat16(monkeypatch)
        algorithm = zoo.ZOO[name]()
        state = jax.eval_shape(algorithm.init, KEY)
        new, metrics = jax.eval_shape(algorithm.step, KEY, state)
        assert not others((state, new, metrics), "float32")
        assert floating(state) == floating(new)
        assert BF16 in products(jax.make_jaxpr(algorithm.step)(KEY, state).jaxpr)

    @pytest.mark.usefixtures("x64")
    def test_a_torso_in_bfloat16_leaves_the_rest_in_float64(self, monkeypatch):
        networks_in_bfloat16(monkeypatch)
        algorithm = zoo.ZOO["ppo"]()
        state = jax.eval_shape(algorithm.init, KEY)
        assert not others((state, jax.eval_shape(algorithm.step, KEY, state)), "float64")
        dots = products(jax.make_jaxpr(algorithm.step)(KEY, state).jaxpr)
        assert set(dots) == {BF16, ("float64", "float64")}

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["acktr", "trpo", "npg"])
    def test_second_order_steps_stay_finite(self, name, monkeypatch):
        networks_in_bfloat16(monkeypatch)
        algorithm = zoo.ZOO[name]()
        state, metrics = pgjax.train(KEY, algorithm, 3)
        for x in jax.tree.leaves((state.learned, metrics)):
            assert np.isfinite(x).all()


class TestCurvature:
    """With a torso in bfloat16, against float32; in both all that comes out is float32."""

    @pytest.fixture(scope="class")
    @classmethod
    def actors(cls):
        wide, narrow = (
            networks.CategoricalActor(3, networks.MLP((16, 16), dtype=d)) for d in (None, jnp.bfloat16)
        )
        obs = jax.random.normal(jax.random.key(1), (128, 4))
        flat, unravel = ravel_pytree(wide.init(KEY, obs))
        params = unravel(flat + 0.3 * jax.random.normal(jax.random.key(2), flat.shape))
        vector = unravel(jax.random.normal(jax.random.key(3), flat.shape))
        return wide.apply, narrow.apply, params, obs, vector

    def near(self, found, wanted, tolerance):
        assert not others(found, "float32")
        found, wanted = (ravel_pytree(x)[0] for x in (found, wanted))
        assert 0 < jnp.linalg.norm(found - wanted) <= tolerance * jnp.linalg.norm(wanted)

    def test_fisher_products_and_matrices_are_within_two_percent(self, actors):
        wide, narrow, params, obs, vector = actors
        product = pgjax.fisher_vector_product
        self.near(product(narrow, params, obs, vector), product(wide, params, obs, vector), 0.02)
        self.near(pgjax.fisher_matrix(narrow, params, obs), pgjax.fisher_matrix(wide, params, obs), 0.02)
        action = wide(params, obs).mode()
        empirical = pgjax.empirical_fisher_matrix
        self.near(empirical(narrow, params, obs, action), empirical(wide, params, obs, action), 0.02)
        scores = pgjax.score
        self.near(scores(narrow, params, obs, action), scores(wide, params, obs, action), 0.02)

    def test_the_damped_natural_gradient_is_within_five_percent(self, actors):
        wide, narrow, params, obs, vector = actors
        found, info = pgjax.natural_gradient(narrow, params, obs, vector)
        wanted, wide_info = pgjax.natural_gradient(wide, params, obs, vector)
        self.near(found, wanted, 0.05)
        assert info.relative_residual < 2.0 * wide_info.relative_residual + 0.01

    @pytest.mark.parametrize("exact", [True, False])
    def test_kronecker_factors_are_within_two_percent_and_the_direction_within_five(self, actors, exact):
        wide, narrow, params, obs, vector = actors
        directions = []
        for apply in (wide, narrow):
            state = kfac.init(params, kfac.dense_layers(apply, params, obs))
            state = kfac.update_factors(state, kfac.factors(apply, params, obs, KEY, exact=exact))
            state = kfac.refresh(state)
            directions.append((state, kfac.precondition(state, vector, damping=0.1)))
        (wide_state, wanted), (state, found) = directions
        assert not others(state, "float32")
        for layer, pair in state.factors.items():
            for factor, other in zip(pair, wide_state.factors[layer], strict=True):
                assert jnp.linalg.norm(factor - other) <= 0.02 * jnp.linalg.norm(other)
        self.near(found, wanted, 0.05)


class TestSettings:
    @pytest.mark.parametrize(
        ("kind", "environment", "network", "torsos", "heads"),
        [
            ("both", "CartPole-v1", {}, 4, 2),
            ("both", "CartPole-v1", {"shared": True}, 2, 2),
            ("both", "Breakout-MinAtar", {"torso": "cnn", "hidden": (16,)}, 4, 2),
            ("policy", "Pendulum-v1", {}, 2, 1),
            ("value", "FrozenLake-misc", {}, 2, 1),
            ("action_values", "CartPole-v1", {"dueling": True}, 2, 2),
            ("deterministic", "Pendulum-v1", {}, 2, 1),
            ("pair_value", "Pendulum-v1", {}, 2, 1),
            ("soft_policy", "Pendulum-v1", {}, 2, 2),
            ("soft_policy", "CartPole-v1", {}, 2, 1),
            ("soft_value", "Pendulum-v1", {}, 2, 1),
        ],
    )
    def test_every_torso_computes_in_the_type_of_the_settings(
        self, kind, environment, network, torsos, heads
    ):
        env, env_params = pgjax.envs.make(environment)
        obs = env.reset(KEY, env_params)[0]
        if kind in ("pair_value", "soft_value"):
            obs = obs, env.action_space(env_params).sample(KEY)
        for dtype, expected in ((None, {F32: torsos + heads}), ("bfloat16", {BF16: torsos, F32: heads})):
            spec = parts.NetworkSpec(**network, dtype=dtype)
            net = parts.make_networks(spec, environment, env, env_params, {"network": kind})["network"]
            program = jax.make_jaxpr(net.apply)(jax.eval_shape(net.init, KEY, obs), obs).jaxpr
            assert products(program) == expected

    def test_are_checked(self):
        with pytest.raises(ValueError, match=r"Unknown network\.dtype 'float16'.*bfloat16"):
            presets.build(presets.preset("ppo", "CartPole-v1", network={"dtype": "float16"}))
        for network in ({"torso": "linear"}, {"hidden": ()}):
            preset = presets.preset("ppo", "CartPole-v1", network=network | {"dtype": "bfloat16"})
            with pytest.raises(ValueError, match=r"without layers .* leave network\.dtype out"):
                presets.build(preset)

    def test_are_kept_and_older_ones_are_read_as_before(self):
        preset = presets.preset("ppo", "CartPole-v1", network={"dtype": "bfloat16"})
        plain = json.loads(json.dumps(presets.to_json(preset)))
        assert plain["network"]["dtype"] == "bfloat16"
        assert presets.from_json(plain) == preset
        del plain["network"]["dtype"]
        assert presets.from_json(plain).network == parts.NetworkSpec(*preset.network[:-1])

    @pytest.mark.slow
    def test_the_command_trains_in_bfloat16_and_its_folder_says_so(self, tmp_path, capsys):
        args = [
            "train",
            "ppo",
            "--num-envs",
            "4",
            "--num-steps",
            "16",
            "--steps",
            "128",
            "--num-minibatches",
            "2",
        ]
        args += ["--network.hidden", "8", "--network.dtype", "bfloat16", "--out", str(tmp_path / "run")]
        assert cli.main(args) == 0
        assert store.read_config(tmp_path / "run")["preset"].network.dtype == "bfloat16"
        assert cli.main(["evaluate", str(tmp_path / "run"), "--episodes", "2"]) == 0
        assert "return" in capsys.readouterr().out
        # a folder from before there was the setting
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        del config["preset"]["network"]["dtype"]
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        assert store.read_config(tmp_path / "run")["preset"].network.dtype is None
        assert cli.main(["evaluate", str(tmp_path / "run"), "--episodes", "2"]) == 0

    def test_help_names_them(self, capsys):
        for command in ("train", "sweep"):
            assert cli.main([command, "ppo", "--help"]) == 0
            assert "--network.dtype" in capsys.readouterr().out


@pytest.mark.slow
class TestLearning:
    def test_ppo_balances_the_pole(self):
        """80,000 steps, 3 seeds: over 150 in the last fifth; 262 to 292 was seen, in float32 241 to 283.

        A policy at random stays up for about 22 steps.
        """
        preset = presets.preset("ppo", "CartPole-v1", steps=80_000, network={"dtype": "bfloat16"})
        num_iterations = preset.steps // presets.iteration_size(preset)[0]
        keys = jax.vmap(jax.random.key)(jnp.arange(3))
        _, metrics = pgjax.train(keys, presets.build(preset), num_iterations)
        last = num_iterations // 5
        total, episodes = (
            np.asarray(metrics[k])[:, -last:].sum(1) for k in ("episode_return_sum", "episodes")
        )
        assert (total / episodes > 150).all()

    def test_dqn_finds_the_better_action(self):
        torso = networks.MLP((16,), dtype=jnp.bfloat16)
        options = {"num_envs": 8, "num_updates": 400, "batch_size": 32, "capacity": 2000, "warmup_steps": 200}
        options |= {"gamma": 0.9, "exploration_steps": 2000, "target_period": 10}
        optimizer = optax.adam(0.01, eps=1e-5)
        algorithm = dqn.make(
            probe_envs.obs_and_action, None, networks.QNetwork(2, torso), optimizer, **options
        )
        state, _ = pgjax.train(KEY, algorithm, 1)
        np.testing.assert_array_equal(algorithm.act(KEY, state, jnp.array([[1.0, 0.0], [-1.0, 0.0]])), [1, 0])

    def test_sac_finds_the_best_action_of_a_box(self):
        """Within 0.15 of it on each of four seeds, as in float32."""
        torso = networks.MLP((16,), dtype=jnp.bfloat16)
        options = {"num_envs": 8, "num_updates": 400, "batch_size": 32, "capacity": 2000, "warmup_steps": 200}
        options |= {"gamma": 0.9, "learn_alpha": False, "alpha": 0.03, "tau": 0.05}
        actor = networks.TanhGaussianActor((-1.0,), (1.0,), torso)
        critic = networks.ActionCritic((-1.0,), (1.0,), torso)
        optimizers = [optax.adam(0.01, eps=1e-5) for _ in range(3)]
        algorithm = sac.make(probe_envs.continuous, None, actor, critic, *optimizers, **options)
        state, _ = pgjax.train(jax.vmap(jax.random.key)(jnp.arange(4)), algorithm, 2)
        obs = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
        action = jax.vmap(lambda state: algorithm.act(KEY, state, obs))(state)
        np.testing.assert_allclose(action[..., 0], [[0.5, -0.5]] * 4, atol=0.15)
