import os
import subprocess
import sys
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import walk

import pgjax
from pgjax.training import Progress, advance, init_progress, map_seeds, split_run_key

KEY = jax.random.key(3)


class Learned(NamedTuple):
    total: jax.Array


class State(NamedTuple):
    learned: Learned
    steps: jax.Array


def adding(bad_at=-1):
    """Adds a random number in every iteration; NaN in one of them."""

    def init(key):
        return State(Learned(jax.random.uniform(key)), jnp.zeros((), jnp.int32))

    def step(key, state):
        drawn = jnp.where(state.steps == bad_at, jnp.nan, jax.random.uniform(key))
        return State(Learned(state.learned.total + drawn), state.steps + 1), {"drawn": drawn}

    return pgjax.Algorithm(init, step, lambda key, state, obs: obs)


def test_iteration_i_uses_the_run_key_folded_with_i():
    state, metrics = pgjax.train(KEY, adding(), 3)
    init_key, run_key = jax.random.split(KEY)
    drawn = [jax.random.uniform(jax.random.fold_in(run_key, i)) for i in range(3)]
    np.testing.assert_array_equal(metrics["drawn"], jnp.stack(drawn))
    np.testing.assert_allclose(state.learned.total, jax.random.uniform(init_key) + sum(drawn), rtol=1e-6)


def test_going_on_from_a_state_is_one_long_run():
    whole, metrics = pgjax.train(KEY, adding(), 5)
    half, first = pgjax.train(KEY, adding(), 2)
    rest, second = pgjax.train(KEY, adding(), 3, state=half, start=2)
    chex.assert_trees_all_equal(whole, rest)
    np.testing.assert_array_equal(metrics["drawn"], jnp.concatenate([first["drawn"], second["drawn"]]))


@pytest.mark.parametrize(
    "make_keys", [jax.random.split, lambda k, n: jax.random.key_data(jax.random.split(k, n))]
)
def test_an_array_of_keys_trains_one_seed_each(make_keys):
    keys = make_keys(KEY, 4)
    states, metrics = pgjax.train(keys, adding(), 2)
    assert metrics["drawn"].shape == (4, 2)
    for i in range(4):
        alone, _ = pgjax.train(keys[i], adding(), 2)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], states), alone, rtol=1e-6)
    later, _ = pgjax.train(keys, adding(), 1, state=states, start=2)
    assert later.steps.tolist() == [3] * 4


def test_train_runs_inside_jit_and_vmap():
    run = jax.jit(jax.vmap(lambda key: pgjax.train(key, adding(), 2)[1]["drawn"]))
    assert run(jax.random.split(KEY, 3)).shape == (3, 2)


def test_a_traced_length_compiles_once_and_leaves_the_rest_of_the_buffer_empty():
    init_key, run_key = split_run_key(KEY)
    chunk = jax.jit(lambda p, start, length: advance(run_key, adding(), p, start, length, 4))
    progress = init_progress(init_key, adding())
    _, full = chunk(progress, 0, 4)
    _, part = chunk(progress, 0, 2)
    assert chunk._cache_size() == 1
    np.testing.assert_array_equal(part["drawn"][:2], full["drawn"][:2])
    np.testing.assert_array_equal(part["drawn"][2:], 0.0)


def test_a_seed_that_meets_a_nan_keeps_what_it_had_learned_and_the_others_go_on():
    init_keys, run_keys = split_run_key(jax.random.split(KEY, 2))
    progress = jax.jit(lambda k: init_progress(k, adding(2)))(init_keys)
    steps = progress.state.steps.at[1].set(-9)  # the second seed never gets there
    progress = Progress(progress.state._replace(steps=steps), progress.diverged_at)
    before, _ = advance(run_keys, adding(2), progress, 0, 2, 2)
    after, _ = advance(run_keys, adding(2), before, 2, 3, 3)
    np.testing.assert_array_equal(after.diverged_at, [2, -1])
    totals = before.state.learned.total, after.state.learned.total
    assert totals[0][0] == totals[1][0]
    assert totals[0][1] < totals[1][1]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("where", ["learned", "metrics"])
def test_what_is_not_finite_is_seen_wherever_it_is(where, bad):
    def step(key, state):
        added, told = (jnp.where((state.steps == 1) & (where == w), bad, 0.0) for w in ("learned", "metrics"))
        return State(Learned(state.learned.total + added), state.steps + 1), {"told": told}

    init_key, run_key = split_run_key(KEY)
    algorithm = adding()._replace(step=step)
    progress, _ = advance(run_key, algorithm, init_progress(init_key, algorithm), 0, 3, 3)
    assert progress.diverged_at == 1


@pytest.mark.parametrize("together", [None, 1, 2])
def test_an_iteration_is_traced_once(together):
    """Tracing is a good part of the time to compile."""
    traced = []

    def step(key, state):
        traced.append(key)
        return adding().step(key, state)

    pgjax.train(jax.random.split(KEY, 4), adding()._replace(step=step), 2, together=together)
    assert len(traced) == 1


class TestMapSeeds:
    @pytest.mark.parametrize("together", [1, 2, 3, 6])
    @pytest.mark.parametrize("make_keys", [lambda keys: keys, jax.random.key_data])
    def test_groups_in_turn_are_all_side_by_side(self, together, make_keys):
        keys = make_keys(jax.random.split(KEY, 6))
        expected = pgjax.train(keys, adding(1), 3)
        chex.assert_trees_all_equal(pgjax.train(keys, adding(1), 3, together=together), expected)

    @pytest.mark.parametrize("together", [1, 2, 4])
    def test_a_chunk_goes_on_and_fills_the_buffer_as_far_as_it_goes(self, together):
        init_keys, run_keys = split_run_key(jax.random.split(KEY, 4))
        start = init_progress(init_keys, adding())

        @jax.jit
        def chunk(progress, begin, length):
            def one(key, progress):
                return advance(key, adding(), progress, begin, length, 4)

            return map_seeds(one, run_keys, progress, together=together)

        half, first = chunk(start, 0, 2)
        end, second = chunk(half, 2, 1)
        expected, metrics = advance(run_keys, adding(), start, 0, 3, 3)
        chex.assert_trees_all_close(end, expected, rtol=1e-6)
        np.testing.assert_array_equal(first["drawn"][:, :2], metrics["drawn"][:, :2])
        np.testing.assert_array_equal(second["drawn"][:, 0], metrics["drawn"][:, 2])
        assert not np.any(first["drawn"][:, 2:])
        assert not np.any(second["drawn"][:, 1:])

    def test_seeds_that_do_not_divide_among_the_devices_are_refused(self):
        init_keys, run_keys = split_run_key(jax.random.split(KEY, 3))
        mesh: Any = jax.sharding.AbstractMesh((2,), ("seed",))
        with pytest.raises(ValueError, match="3 seeds do not divide among 2 devices"):
            map_seeds(
                lambda key, progress: (progress, {}), run_keys, init_progress(init_keys, adding()), mesh=mesh
            )

    def test_a_group_holds_up_no_other(self):
        """Side by side, a loop without a fixed end goes on until the slowest seed is done."""

        def count(row, progress):
            turns = jax.lax.while_loop(lambda n: n < row["until"], lambda n: n + 1, jnp.int32(0))
            return progress._replace(diverged_at=turns), {"turns": turns[None]}

        rows = {"until": jnp.array([3, 1, 2, 5])}
        progress = Progress(jnp.zeros((4, 2)), jnp.full(4, -1, jnp.int32))
        after, metrics = map_seeds(count, rows, progress, together=1)
        assert after.diverged_at.tolist() == metrics["turns"][:, 0].tolist() == rows["until"].tolist()

        def ends(together):
            """What says that the loop is over: one for all, or one for each seed of a group."""
            program = jax.make_jaxpr(lambda *rows: map_seeds(count, *rows, together=together))(rows, progress)
            loops = [e for e in walk(program.jaxpr) if e.primitive.name == "while"]
            return loops[0].params["cond_jaxpr"].out_avals[0].shape

        assert [ends(n) for n in (1, 2, 4)] == [(), (2,), (4,)]

    def test_seeds_are_updated_where_they_lie(self):
        """Another copy of a replay buffer would be more than a machine may have."""
        state = jnp.zeros((6, 100_000))

        def touch(row, progress):
            return progress._replace(state=progress.state.at[0].add(row)), {"x": row[None]}

        def chunk(progress):
            return map_seeds(touch, jnp.arange(6.0), progress, together=1)

        progress = Progress(state, jnp.full(6, -1, jnp.int32))
        found = jax.jit(chunk, donate_argnums=0).lower(progress).compile().memory_analysis()
        assert found.alias_size_in_bytes >= state.nbytes
        assert found.temp_size_in_bytes <= 2.1 * state.nbytes / 6

    def test_keys_on_several_devices_stay_there(self):
        code = """
import jax, numpy as np, pgjax
from test_training import adding
keys = jax.random.split(jax.random.key(3), 12)
expected = pgjax.train(keys, adding(1), 2)
for together in (1, 2, None):
    found = pgjax.train(pgjax.shard(keys), adding(1), 2, together=together)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(len(x.sharding.device_set) == 3 for x in jax.tree.leaves(found)), found
try:
    pgjax.train(pgjax.shard(keys), adding(), 1, together=3)
except ValueError as error:
    print(error)
"""
        devices = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
            "PYTHONPATH": os.path.dirname(__file__),
        }
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env=devices
        )
        assert "4 seeds of a device do not divide into groups of 3" in ended.stdout, ended.stderr

    @pytest.mark.parametrize("together", [0, 4, 12])
    def test_groups_that_do_not_divide_the_seeds_are_refused(self, together):
        with pytest.raises(ValueError, match=f"6 seeds of a device do not divide into groups of {together}"):
            pgjax.train(jax.random.split(KEY, 6), adding(), 1, together=together)

    def test_a_single_seed_has_no_groups(self):
        with pytest.raises(ValueError, match="together=1 is for several seeds"):
            pgjax.train(KEY, adding(), 1, together=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_iterations": 0}, "at least 1"), ({"num_iterations": 1, "start": 2}, "needs the state")],
)
def test_impossible_calls_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pgjax.train(KEY, adding(), **arguments)


def test_gradients_pass_through_a_whole_run():
    """Meta-learning: the derivative with respect to a hyper-parameter of all iterations."""

    def scaled(factor):
        def step(key, state):
            del key
            return State(Learned(state.learned.total * factor), state.steps), {}

        return pgjax.Algorithm(lambda key: State(Learned(jnp.ones(())), jnp.int32(0)), step, adding().act)

    def final(factor):
        return pgjax.train(KEY, scaled(factor), 3)[0].learned.total

    assert jax.grad(final)(2.0) == pytest.approx(12.0)


def test_many_seeds_start_without_a_deadlock():
    """Batched LAPACK calls side by side hang jaxlib 0.10 on few cores; seeds start one after the other."""
    code = """
import jax, optax, pgjax
from pgjax import networks
from pgjax.algorithms import a2c
network = networks.ActorCritic(networks.CategoricalActor(2), networks.Critic())
algorithm = a2c.make(*pgjax.envs.make("CartPole-v1"), network, optax.sgd(1e-3))
jax.block_until_ready(pgjax.train(jax.random.split(jax.random.key(0), 6), algorithm, 1))
print("done")
"""
    optimized = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env=optimized
    )
    assert ended.stdout.strip().endswith("done"), ended.stderr
