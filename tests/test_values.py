import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_envs import Probe
from programs import equations

import pgjax
from pgjax import networks

T, N = 12, 3
# episodes of five steps: cut off at steps 4 and 9, the rollout in the middle of the third
CUT, ENDING = (
    Probe(lambda obs, time, action: 0.0, length=5, timed=True, signs=True, truncates=truncates)
    for truncates in (True, False)
)


def rollout(env, num_steps=T, num_envs=N):
    key = jax.random.key(0)

    def policy(key, obs):
        return jnp.zeros(num_envs, jnp.int32), jnp.zeros(num_envs)

    return pgjax.rollout(key, pgjax.reset_envs(key, env, None, num_envs), policy, env, None, num_steps)[1]


def exactly(obs):
    """As different for different observations as can be."""
    return obs[..., 0] * (10.0 + obs[..., 1])


def anything(rng):
    """A rollout whose episodes end anywhere, in every way, each observation unlike any other."""
    shape = T, N
    terminated, truncated = rng.random((2, *shape)) < 0.3  # both at once, too
    obs = rng.permutation(T * N).reshape(*shape, 1) + np.array([0.0, 0.5])
    next_obs = np.concatenate([obs[1:], 1000.0 + obs[:1]])
    next_obs = np.where((terminated | truncated)[..., None], next_obs + 2000.0, next_obs)
    next_obs = np.where((terminated & ~truncated)[..., None], np.nan, next_obs)
    zeros = np.zeros(shape)
    return pgjax.Transition(
        *(jnp.asarray(x) for x in (obs, zeros, zeros, zeros, terminated, truncated, next_obs))
    )


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 4, 6, 12, None])
def test_values_are_those_of_the_observations_however_they_are_cut(num_chunks, rng):
    for _ in range(10):
        traj = anything(rng)
        value, next_value = pgjax.rollout_values(exactly, traj, num_chunks=num_chunks)
        np.testing.assert_array_equal(value, exactly(traj.obs))
        looked_at = ~np.asarray(traj.terminated)
        np.testing.assert_array_equal(next_value[looked_at], exactly(traj.next_obs)[looked_at])


@pytest.mark.parametrize("num_chunks", [2, 12])
def test_advantages_and_gradients_are_the_same_mapped_or_not(num_chunks, rng, x64):
    network = networks.Critic(networks.MLP((8,)))
    several = jax.vmap(network.init, (0, None))(jax.random.split(jax.random.key(1)), jnp.zeros(2))
    traj = anything(rng)

    def advantage(params, chunks):
        def critic(obs):
            return network.apply(params, obs / 1000.0)

        values = pgjax.rollout_values(critic, traj, num_chunks=chunks)
        flags = traj.terminated, traj.truncated
        return pgjax.gae(traj.reward, *values, *flags, gamma=0.9, lambda_=0.8)

    def both(params, chunks):
        return advantage(params, chunks), jax.grad(lambda p: jnp.sin(advantage(p, chunks)).sum())(params)

    # where terminated a NaN is looked at by none of them, but its gradient would be
    traj = traj._replace(next_obs=jnp.nan_to_num(traj.next_obs))
    for i in range(2):
        params = jax.tree.map(lambda x, i=i: x[i], several)
        wanted = both(params, 1)
        chex.assert_trees_all_close(both(params, num_chunks), wanted, rtol=1e-9, atol=1e-12)
        mapped = jax.vmap(both, (0, None))(several, num_chunks)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], mapped), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_chunks", [1, 4])
@pytest.mark.parametrize("wrong", [lambda v: v[:, None], lambda v: jnp.stack([v, v]), jnp.sum])
def test_a_critic_gives_one_value_for_each_observation(wrong, num_chunks):
    with pytest.raises(ValueError, match="one for each is needed"):
        pgjax.rollout_values(lambda obs: wrong(exactly(obs)), rollout(CUT), num_chunks=num_chunks)


def test_observations_may_be_trees():
    traj = rollout(CUT)
    traj = traj._replace(
        obs={"a": traj.obs, "b": traj.obs[..., 0]}, next_obs={"a": traj.next_obs, "b": traj.next_obs[..., 0]}
    )
    value, next_value = pgjax.rollout_values(lambda obs: exactly(obs["a"]) + obs["b"], traj, num_chunks=4)
    np.testing.assert_array_equal(value, exactly(traj.obs["a"]) + traj.obs["b"])
    np.testing.assert_array_equal(next_value, exactly(traj.next_obs["a"]) + traj.next_obs["b"])


@pytest.mark.parametrize(("env", "extra"), [(CUT, 3), (ENDING, 1)])
def test_successors_are_looked_at_only_where_an_episode_was_cut_off(env, extra):
    calls = []

    def critic(obs):
        jax.debug.callback(lambda: calls.append(1))
        return exactly(obs)

    # chunks of two steps: cut off in the third and the fifth, and the last one is always needed
    jax.block_until_ready(pgjax.rollout_values(critic, rollout(env), num_chunks=6))
    jax.effects_barrier()
    assert len(calls) == 6 + extra


@pytest.mark.parametrize(
    ("num_steps", "num_envs", "chunks"), [(128, 4, 1), (128, 8, 2), (128, 64, 16), (4, 2048, 4)]
)
def test_a_chunk_stays_in_the_cache_of_a_cpu_and_elsewhere_there_is_one(
    num_steps, num_envs, chunks, monkeypatch
):
    shape = num_steps, num_envs
    traj = pgjax.Transition(
        *(jnp.zeros((*shape, 2)), jnp.zeros(shape, int), jnp.zeros(shape), jnp.zeros(shape)),
        *(jnp.zeros(shape, bool), jnp.zeros(shape, bool), jnp.zeros((*shape, 2))),
    )

    def loops():
        def look(traj):
            return pgjax.rollout_values(lambda obs: obs[..., 0] + obs[..., 1], traj)

        program = jax.make_jaxpr(look)(traj)
        found = [e.params["length"] for e in program.eqns if e.primitive.name == "scan"]
        return found, list(equations(program.jaxpr)).count("cond")

    assert loops() == (([], 0) if chunks == 1 else ([chunks], 1))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert loops() == ([], 0)


@pytest.mark.parametrize("num_chunks", [0, 5, 13])
def test_chunks_that_do_not_divide_the_steps_are_an_error(num_chunks):
    with pytest.raises(ValueError, match=f"num_chunks={num_chunks} must divide the 12 steps"):
        pgjax.rollout_values(exactly, rollout(CUT), num_chunks=num_chunks)
