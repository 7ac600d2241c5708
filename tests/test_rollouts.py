import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_envs import Probe, constant_value, endless

import pgjax

counting = Probe(lambda obs, time, action: time + 1, length=3, timed=True)
KEY = jax.random.key(0)
CARTPOLE = pgjax.envs.make("CartPole-v1")


def policy(key, obs):
    return jnp.zeros(obs.shape[0], jnp.int32), jnp.zeros(obs.shape[0])


def sampled(key, obs):
    return pgjax.Categorical(jnp.zeros((obs.shape[0], 2))).sample_and_log_prob(key)


@jax.jit
def two_windows(key):
    carry = pgjax.reset_envs(key, counting, None, 2)
    first, traj, stats = pgjax.rollout(key, carry, policy, counting, None, 4)
    second, later, later_stats = pgjax.rollout(key, first, policy, counting, None, 4)
    return first, traj, stats, second, later, later_stats


class TestStream:
    def test_next_obs_is_what_the_action_led_to_and_never_the_obs_after_a_reset(self):
        _, traj, *_ = two_windows(KEY)
        np.testing.assert_array_equal(traj.obs[:, 0, 1], [0, 1, 2, 0])
        np.testing.assert_array_equal(traj.next_obs[:, 0, 1], [1, 2, 3, 1])

    def test_flags_rewards_and_dtypes(self):
        _, traj, *_ = two_windows(KEY)
        np.testing.assert_array_equal(traj.terminated[:, 1], [False, False, True, False])
        assert not traj.truncated.any()
        np.testing.assert_array_equal(traj.reward[:, 0], [1.0, 2.0, 3.0, 1.0])
        assert (traj.reward.dtype, traj.terminated.dtype) == (jnp.float32, jnp.bool_)

    def test_an_episode_cut_by_the_window_is_counted_whole_when_it_ends(self):
        first, _, stats, second, later, later_stats = two_windows(KEY)
        assert (stats.episodes, stats.return_sum, stats.length_sum) == (2, 12.0, 6)
        np.testing.assert_array_equal(first.episode_return, [1.0, 1.0])
        np.testing.assert_array_equal(first.episode_length, [1, 1])
        np.testing.assert_array_equal(later.obs[:, 0, 1], [1, 2, 0, 1])
        assert (later_stats.episodes, later_stats.return_sum, later_stats.length_sum) == (2, 12.0, 6)
        np.testing.assert_array_equal(second.episode_return, [3.0, 3.0])
        np.testing.assert_array_equal(second.episode_length, [2, 2])

    def test_truncation_is_stored_as_truncation(self):
        carry = pgjax.reset_envs(KEY, endless, None, 1)
        _, traj, stats = pgjax.rollout(KEY, carry, policy, endless, None, 10)
        np.testing.assert_array_equal(traj.truncated[:, 0], np.arange(10) == 9)
        assert not traj.terminated.any()
        assert stats.mean_return == 10.0

    def test_the_mean_over_no_episodes_is_nan(self):
        carry = pgjax.reset_envs(KEY, endless, None, 1)
        *_, stats = pgjax.rollout(KEY, carry, policy, endless, None, 2)
        assert stats.episodes == 0
        assert jnp.isnan(stats.mean_return)
        assert jnp.isnan(stats.mean_length)

    def test_integer_rewards_become_floats(self):
        carry = pgjax.reset_envs(KEY, constant_value, None, 1)
        assert pgjax.rollout(KEY, carry, policy, constant_value, None, 2)[1].reward.dtype == jnp.float32

    def test_every_step_and_environment_draws_for_itself(self):
        env = Probe(lambda obs, time, action: 0.0, length=1, signs=True)
        carry = pgjax.reset_envs(KEY, env, None, 16)
        _, traj, _ = pgjax.rollout(KEY, carry, sampled, env, None, 64)
        for drawn in (traj.action, traj.obs[..., 0] > 0):
            rows = {tuple(row) for row in np.asarray(drawn).tolist()}
            columns = {tuple(column) for column in np.asarray(drawn).T.tolist()}
            assert (len(rows), len(columns)) == (64, 16)
        # 1024 fair coins: within 4 deviations of the mean (99.99 %)
        assert abs(float(traj.action.mean()) - 0.5) < 4 * 0.5 / 32

    def test_a_second_call_sees_the_shapes_of_the_first(self):
        env, env_params = pgjax.envs.make("Acrobot-v1")
        carry = jax.eval_shape(lambda k: pgjax.reset_envs(k, env, env_params, 2), KEY)
        after = jax.eval_shape(lambda k, c: pgjax.rollout(k, c, policy, env, env_params, 3)[0], KEY, carry)
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), carry) == jax.tree.map(
            lambda x: (x.shape, x.dtype, x.weak_type), after
        )

    @pytest.mark.parametrize("call", [lambda: pgjax.reset_envs(KEY, endless, None, 0)])
    def test_impossible_sizes_are_refused(self, call):
        with pytest.raises(ValueError, match="at least 1"):
            call()


class TestEpisodes:
    def test_one_whole_episode_a_column_and_nothing_behind_it(self):
        traj, valid = pgjax.rollout_episodes(KEY, policy, counting, None, 2, 5)
        np.testing.assert_array_equal(valid[:, 0], [True, True, True, False, False])
        np.testing.assert_array_equal(traj.reward[:, 1], [1.0, 2.0, 3.0, 0.0, 0.0])
        np.testing.assert_array_equal(traj.terminated[:, 0], [False, False, True, False, False])
        assert not traj.truncated.any()

    def test_an_episode_that_meets_max_steps_is_truncated(self):
        traj, valid = pgjax.rollout_episodes(KEY, policy, counting, None, 1, 2)
        assert valid.all()
        np.testing.assert_array_equal(traj.truncated[:, 0], [False, True])
        assert not traj.terminated.any()

    def test_an_episode_that_ends_with_max_steps_is_terminated(self):
        traj, _ = pgjax.rollout_episodes(KEY, policy, counting, None, 1, 3)
        assert traj.terminated[-1, 0]
        assert not traj.truncated.any()

    def test_the_environments_own_limit_truncates(self):
        traj, valid = pgjax.rollout_episodes(KEY, policy, endless, None, 1, 12)
        np.testing.assert_array_equal(traj.truncated[:, 0], np.arange(12) == 9)
        assert valid.sum() == 10

    def test_pieces_of_time_play_the_same_episodes(self):
        def play(chunk_steps):
            return pgjax.rollout_episodes(KEY, sampled, *CARTPOLE, 6, 120, chunk_steps=chunk_steps)

        (whole, valid), (pieces, valid_in_pieces) = play(None), play(10)
        np.testing.assert_array_equal(valid, valid_in_pieces)
        of_episodes = [
            jax.tree.map(lambda x: x[np.asarray(valid)], traj._replace(truncated=None))
            for traj in (whole, pieces)
        ]
        chex.assert_trees_all_equal(*of_episodes)
        np.testing.assert_array_equal(whole.truncated, pieces.truncated)
        played = -(-valid.sum(0) // 10)
        assert played.min() < played.max() < 12  # they end in different pieces, and long before the limit
        assert not pieces.obs[10 * int(played.max()) :].any()

    def test_nothing_is_played_after_the_piece_in_which_the_last_episode_ends(self):
        traj, valid = pgjax.rollout_episodes(KEY, policy, counting, None, 2, 12, chunk_steps=2)
        np.testing.assert_array_equal(valid.sum(0), [3, 3])
        assert traj.next_obs[:4].any((1, 2)).all()
        assert not jax.tree.reduce(lambda a, x: a | x[4:].any(), traj, jnp.zeros((), bool))

    def test_an_episode_that_meets_max_steps_in_pieces_is_truncated(self):
        traj, valid = pgjax.rollout_episodes(KEY, policy, endless, None, 1, 8, chunk_steps=4)
        assert valid.all()
        np.testing.assert_array_equal(traj.truncated[:, 0], np.arange(8) == 7)

    def test_an_episode_that_the_environment_cuts_has_ended(self):
        traj, valid = pgjax.rollout_episodes(KEY, policy, endless, None, 1, 20, chunk_steps=5)
        np.testing.assert_array_equal(valid[:, 0], np.arange(20) < 10)
        assert traj.next_obs[:10].any(-1).all()
        assert not traj.next_obs[10:].any()

    def test_mapped_rollouts_stop_together_and_select_nothing(self):
        """Where copies stop one by one, each turn copies every buffer: a `select` as large as the rollout."""
        keys = jax.random.split(KEY, 3)

        def play(key):
            return pgjax.rollout_episodes(key, sampled, *CARTPOLE, 2, 120, chunk_steps=10)

        mapped, valid = jax.vmap(play)(keys)
        assert len(set(valid.any(2).sum(1).tolist())) > 1
        for i, key in enumerate(keys):
            alone, valid_alone = play(key)
            np.testing.assert_array_equal(valid[i], valid_alone)
            np.testing.assert_array_equal(mapped.reward[i], alone.reward)
            np.testing.assert_array_equal(mapped.truncated[i], alone.truncated)
        program = jax.jit(jax.vmap(play)).lower(keys).as_text()  # where a loop over copies gets its selects
        assert re.search(r"tensor<3x120x2x4xf32>", program)
        assert not re.search(r"stablehlo.select .*tensor<3x120x2x4xf32>", program)

    @pytest.mark.parametrize("chunk_steps", [0, 7, 240])
    def test_pieces_divide_the_steps(self, chunk_steps):
        with pytest.raises(ValueError, match=f"chunk_steps={chunk_steps} must divide max_steps=120"):
            pgjax.rollout_episodes(KEY, policy, counting, None, 2, 120, chunk_steps=chunk_steps)

    def test_stats_count_valid_steps_only(self):
        traj, valid = pgjax.rollout_episodes(KEY, policy, counting, None, 4, 7)
        stats = pgjax.episode_stats(traj, valid)
        assert (stats.episodes, stats.return_sum, stats.length_sum) == (4, 24.0, 12)


class TestEvaluate:
    def act(self, key, obs):
        return jnp.zeros(obs.shape[0], jnp.int32)

    def test_whole_episodes_and_no_more(self):
        stats = pgjax.evaluate(KEY, self.act, counting, None, 5, 100)
        assert (stats.episodes, stats.return_sum, stats.length_sum) == (5, 30.0, 15)

    def test_max_steps_cuts(self):
        stats = pgjax.evaluate(KEY, self.act, counting, None, 2, 2)
        assert (stats.mean_return, stats.mean_length) == (3.0, 2.0)

    def test_agrees_with_collected_episodes_on_cartpole(self):
        """A constant action: the start alone is random, so both means estimate the same number."""
        env, env_params = pgjax.envs.make("CartPole-v1")
        stats = pgjax.evaluate(KEY, self.act, env, env_params, 200, 500)
        traj, valid = pgjax.rollout_episodes(jax.random.key(1), policy, env, env_params, 200, 20)
        chex.assert_trees_all_close(stats.mean_length, pgjax.episode_stats(traj, valid).mean_length, atol=0.3)

    def test_works_under_jit_and_vmap(self):
        keys = jax.random.split(KEY, 3)
        play = jax.jit(jax.vmap(lambda k: pgjax.evaluate(k, self.act, counting, None, 2, 9).mean_return))
        np.testing.assert_array_equal(play(keys), [6.0, 6.0, 6.0])
