"""Details of PPO that are numbers: each switches off at one end, and the study of all combinations."""

import dataclasses
import importlib.util
import itertools
import json
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from zoo import GAUSSIAN, MASKED, PENDULUM, ZOO, separate, shared

from pgjax.experiment import presets
from pgjax.normalization import blend, init_moments, normalize

KEY = jax.random.key(0)
OPTIONS = ("normalize_advantage", "normalize_obs", "normalize_reward")
SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "ppo_details.py"


class TestBlend:
    def test_a_bool_is_decided_before_anything_is_traced(self):
        x = jnp.arange(3.0)
        assert blend(False, pytest.fail, x) is x
        np.testing.assert_array_equal(blend(True, jnp.square, x), [0.0, 1.0, 4.0])

    @pytest.mark.parametrize(("weight", "expected"), [(0.0, [0.5, -3.0]), (1.0, [0.25, 9.0])])
    def test_the_ends_are_exact(self, weight, expected):
        mixed = jax.jit(lambda w: blend(w, jnp.square, jnp.array([0.5, -3.0])))(weight)
        np.testing.assert_array_equal(mixed, np.float32(expected))

    def test_a_mask_stays_a_mask(self):
        obs = {"obs": jnp.array([3.0, 5.0]), "action_mask": jnp.array([True, False])}
        seen = blend(jnp.array(0.5), lambda obs: normalize(init_moments(obs), obs, clip=1.0), obs)
        np.testing.assert_allclose(seen["obs"], [2.0, 3.0])
        assert seen["action_mask"].dtype == bool
        np.testing.assert_array_equal(seen["action_mask"], [True, False])


def pendulum(weights):
    """PPO where rewards and observations are far from normal, with `weights` of the three options."""
    switches = dict(zip(OPTIONS, weights, strict=True))
    return ZOO["ppo"](PENDULUM, separate(GAUSSIAN), learning_rate=0.01, **switches)


@pytest.fixture(scope="module")
def traced():
    """`init` and `step` of the weights: one program each for all of them."""
    init = jax.jit(lambda weights, key: pendulum(weights).init(key))
    return init, jax.jit(lambda weights, key, state: pendulum(weights).step(key, state))


def without_what_is_off(state, switches):
    learned = state.learned
    if not switches[1]:
        learned = learned._replace(obs_moments=None)
    if not switches[2]:
        learned = learned._replace(reward_scaling=None)
    return state._replace(learned=learned)


class TestSwitches:
    @pytest.mark.parametrize(
        "switches",
        [(True, False, False), (False, True, False), (False, False, True)],
        ids=["advantage", "obs", "reward"],
    )
    def test_the_ends_of_a_weight_are_on_and_off(self, traced, switches):
        init, step = traced
        weights = jnp.array(switches, float)
        state = init(weights, KEY)
        start = without_what_is_off(state, switches)
        assert start.learned.params is state.learned.params
        after, metrics = step(weights, KEY, state)
        static_after, static_metrics = jax.jit(pendulum(switches).step)(KEY, start)
        close = {"rtol": 1e-6, "atol": 1e-6}
        chex.assert_trees_all_close(without_what_is_off(after, switches), static_after, **close)
        for name in ("policy_loss", "value_loss", "grad_norm", "episode_return_sum"):
            np.testing.assert_allclose(metrics[name], static_metrics[name], rtol=1e-5)

    def test_every_weight_changes_what_is_learned(self, traced):
        init, step = traced
        state = init(jnp.zeros(3), KEY)
        weights = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3), 0.5 * jnp.eye(3)])
        params = [step(w, KEY, state)[0].learned.params for w in weights]
        flat = np.array([np.concatenate([np.ravel(x) for x in jax.tree.leaves(p)]) for p in params])
        distances = np.abs(flat[:, None] - flat[None]).max(axis=-1)
        assert distances[~np.eye(len(flat), dtype=bool)].min() > 1e-4

    def test_the_start_at_one_is_that_of_on(self, traced):
        state = traced[0](jnp.ones(3), KEY)
        static = jax.jit(pendulum((True,) * 3).init)(KEY)
        chex.assert_trees_all_close(state, static, rtol=1e-6, atol=1e-6)
        assert state.uncounted_steps == 32

    def test_weights_map_like_any_number(self, traced):
        init, step = traced
        state = init(jnp.ones(3), KEY)
        weights = jnp.array([[0.0, 0.0, 0.0], [0.5, 0.2, 0.7], [1.0, 1.0, 1.0]])
        together, _ = jax.jit(jax.vmap(step, in_axes=(0, None, None)))(weights, KEY, state)
        for i, w in enumerate(weights):
            one = step(w, KEY, state)[0].learned.params
            mapped = jax.tree.map(lambda x, i=i: x[i], together.learned.params)
            chex.assert_trees_all_close(mapped, one, rtol=1e-4, atol=1e-5)

    def test_half_a_normalisation_shows_the_network_the_middle(self, traced):
        state = traced[0](jnp.ones(3), KEY)
        obs = jnp.array([[0.3, -0.9, 4.0], [1.0, 0.0, -7.0]])
        middle = 0.5 * obs + 0.5 * normalize(state.learned.obs_moments, obs)
        half = pendulum((False, jnp.array(0.5), False)).act(KEY, state, obs)
        off = pendulum((False, False, False)).act(KEY, without_what_is_off(state, (0, 0, 0)), middle)
        np.testing.assert_allclose(half, off, rtol=1e-6)
        raw = pendulum((False, False, False)).act(KEY, without_what_is_off(state, (0, 0, 0)), obs)
        assert np.abs(half - raw).min() > 1e-5

    def test_masked_actions_work_with_a_weight(self):
        algorithm = ZOO["ppo"](MASKED, shared(), normalize_obs=jnp.array(0.5))
        state = jax.eval_shape(algorithm.init, KEY)
        after, _ = jax.eval_shape(algorithm.step, KEY, state)
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)

    def test_for_presets_and_the_command_they_are_flags(self):
        options = presets.keyword_options("ppo")
        assert [options[name].annotation for name in OPTIONS] == [bool] * 3
        assert not set(OPTIONS) & set(presets.hyper(presets.preset("ppo"))["options"])


@pytest.fixture(scope="module")
def study():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("ppo_details", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NONE = {"schedule": "constant", "eps": 1e-8, "max_grad_norm": None}
SETTINGS = {  # the column of the table, and the same as a preset has it
    "full": (0, {"normalize_obs": True, "normalize_reward": True, "steps": 6 * 512}),
    "bare": (
        1,
        {"clip_eps": jnp.inf, "value_clip_eps": jnp.inf, "entropy_coef": 0.0, "normalize_advantage": False}
        | {"optimizer": NONE},
    ),
}


class TestStudy:
    def test_full_and_bare_ppo_learn_as_those_that_the_presets_build(self, study, rng):
        def make(setting):
            return study.algorithm(setting, "CartPole-v1", 5)

        step = jax.jit(lambda setting, state: make(setting).step(KEY, state)[0].learned.params)
        values = np.array(list(study.DETAILS.values()), np.float32)
        state = jax.eval_shape(lambda: make(values[:, 0]).init(KEY))
        state = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), state
        )  # the pole stands still and upright
        params = jax.tree.map(
            lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), state.learned.params
        )
        state = state._replace(learned=state.learned._replace(params=params))
        for column, changes in SETTINGS.values():
            plain = presets.build(presets.preset("ppo", "CartPole-v1", **changes))
            learned = jax.eval_shape(plain.init, KEY).learned
            learned = learned._replace(
                params=dataclasses.replace(learned.params, vector=ravel_pytree(params)[0]),
                opt_state=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), learned.opt_state),
            )
            if column == 0:
                moments = state.learned.obs_moments, state.learned.reward_scaling
                learned = learned._replace(obs_moments=moments[0], reward_scaling=moments[1])
            expected = jax.jit(plain.step)(KEY, state._replace(learned=learned))[0].learned.params.tree
            moved = jax.tree.map(jnp.subtract, expected, params)
            assert all(jnp.abs(x).max() > 1e-4 for x in jax.tree.leaves(moved))
            chex.assert_trees_all_close(step(values[:, column], state), expected, rtol=1e-5, atol=1e-6)

    def test_weights_that_are_not_orthogonal_have_the_scale_of_lecun(self, study):
        class Wide:
            def init(self, key, obs):
                return {"kernel": jnp.full((200, 300), 7.0), "bias": jnp.full(300, 2.0)}

        kernels = [study.PartlyOrthogonal(Wide(), w).init(KEY, None)["kernel"] for w in (0.0, 0.25, 1.0)]
        np.testing.assert_allclose(np.std(kernels[0]), 1 / np.sqrt(200), rtol=0.02)
        np.testing.assert_allclose(kernels[1], 0.75 * kernels[0] + 0.25 * 7.0, rtol=1e-6)
        np.testing.assert_array_equal(kernels[2], 7.0)
        np.testing.assert_array_equal(study.PartlyOrthogonal(Wide(), 0.0).init(KEY, None)["bias"], 2.0)

    def test_every_combination_is_planned_and_those_near_the_ends_oftener(self, study):
        on, seed = study.plan(3, seeds=2, more_seeds=5)
        runs = list(zip(map(tuple, on.tolist()), seed.tolist(), strict=True))
        assert len(set(runs)) == len(runs)
        near = list(itertools.product((False, True), repeat=3))  # with three details all are near
        assert set(runs) == {(on, seed) for on in near for seed in range(5)}
        on, seed = study.plan(4, seeds=2, more_seeds=5)
        middle = on.sum(axis=1) == 2
        assert len(on) == 6 * 2 + 10 * 5
        assert seed[middle].max() == 1

    def test_effects_are_differences_of_means(self, study, rng):
        on, seed = study.plan(4, seeds=2, more_seeds=3)
        score = {(tuple(map(int, o)), int(s)): float(rng.normal()) for o, s in zip(on, seed, strict=True)}
        combinations = {}
        for (o, _), x in score.items():
            combinations.setdefault("".join(map(str, o)), [[], []])[0].append(x)
        found = {"details": dict.fromkeys("abcd"), "combinations": combinations}
        rows, interactions = study.effects(study.by_combination(found, 0))

        def of(i, value, others):
            return (*others[:i], value, *others[i:])

        def mean(o):
            return (score[o, 0] + score[o, 1]) / 2

        for i, (every, full, bare) in enumerate(rows):
            all_others = list(itertools.product((0, 1), repeat=3))
            expected = [mean(of(i, 1, others)) - mean(of(i, 0, others)) for others in all_others]
            np.testing.assert_allclose(every, expected)
            for found, others in ((full, (1, 1, 1)), (bare, (0, 0, 0))):
                differences = [score[of(i, 1, others), s] - score[of(i, 0, others), s] for s in range(3)]
                np.testing.assert_allclose(found, differences)
            for j in set(range(4)) - {i}:
                with_j = np.array([of(i, 0, others)[j] == 1 for others in all_others])
                by_j = np.mean(np.array(expected)[with_j]) - np.mean(np.array(expected)[~with_j])
                np.testing.assert_allclose(interactions[i, j], by_j)

    def test_the_interval_covers_the_mean_as_often_as_it_says(self, study):
        samples = np.random.default_rng(1).normal(3.0, 2.0, size=(200, 100))
        mean, low, high = np.array([study.mean_interval(x, 500) for x in samples]).T
        np.testing.assert_allclose(mean, samples.mean(axis=1))
        assert 0.89 < np.mean((low < 3.0) & (high > 3.0)) < 0.99  # 95 % ± three binomial deviations

    def test_the_quick_study_is_one_program_with_table_and_figure(self, study, tmp_path, monkeypatch, capsys):
        results = tmp_path / "quick.json"
        call = [sys.executable, str(SCRIPT), "--quick", "--results", str(results)]
        done = subprocess.run(call, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = json.loads(results.read_text())["CartPole-v1"]
        assert found["programs"] == 1
        assert found["runs"] == 8
        assert list(found["details"]) == ["orthogonal initialisation", "advantage normalisation"]
        assert sorted(found["combinations"]) == ["00", "01", "10", "11"]
        scores = np.array(list(found["combinations"].values()))
        assert scores.shape == (4, 2, 2)
        assert ((scores > 8.0) & (scores < 500.0)).all()
        for name in found["details"]:
            assert f"| {name} | " in done.stdout
        before = results.with_suffix(".png").read_bytes()
        assert len(before) > 20_000
        monkeypatch.setattr(sys, "argv", [*call[1:], "--draw"])
        study.main()
        assert capsys.readouterr().out in done.stdout
        assert results.with_suffix(".png").read_bytes() == before
