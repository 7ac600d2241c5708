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


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 4, 6, 12, None])
@pytest.mark.parametrize("env", [CUT, ENDING])
def test_values_are_those_of_the_observations_however_they_are_cut(env, num_chunks):
    traj = rollout(env)
    value, next_value = pgjax.rollout_values(exactly, traj, num_chunks=num_chunks)
    np.testing.assert_array_equal(value, exactly(traj.obs))
    looked_at = ~np.asarray(traj.terminated)
    assert looked_at.all() or not looked_at[4].any()
    np.testing.assert_array_equal(next_value[looked_at], exactly(traj.next_obs)[looked_at])
    assert np.isfinite(next_value).all()


@pytest.mark.parametrize("num_chunks", [1, 4])
def test_the_advantage_is_the_same(num_chunks, x64):
    network = networks.Critic(networks.MLP((8,)))
    params = network.init(jax.random.key(1), jnp.zeros(2))

    def critic(obs):
        return network.apply(params, obs)

    for env in (CUT, ENDING):
        traj = rollout(env)
        both = critic(traj.obs), critic(traj.next_obs)
        found, right = (
            pgjax.gae(traj.reward, *v, traj.terminated, traj.truncated, gamma=0.9, lambda_=0.8)
            for v in (pgjax.rollout_values(critic, traj, num_chunks=num_chunks), both)
        )
        np.testing.assert_allclose(found, right, rtol=1e-10, atol=1e-12)


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
