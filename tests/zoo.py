"""Every algorithm in a small size, for the tests that hold for all of them."""

import flax.linen as nn
import jax.numpy as jnp
import optax

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
from pgjax.natural.kfac import kfac_optimizer

CARTPOLE = pgjax.envs.make("CartPole-v1", max_steps_in_episode=12)
PENDULUM = pgjax.envs.make("Pendulum-v1", max_steps_in_episode=12)
TORSO = networks.MLP(hidden=(8,))
OTHER_TORSO = networks.MLP(hidden=(8,))


def adam(learning_rate=1e-3):
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adam(learning_rate, eps=1e-5))


def categorical(num_actions=2):
    return networks.CategoricalActor(num_actions, TORSO)


def critic():
    return networks.Critic(OTHER_TORSO)


def separate(actor=None):
    return networks.ActorCritic(actor or categorical(), critic())


def shared():
    heads = networks.features_as_they_are
    return networks.ActorCritic(networks.CategoricalActor(2, heads), networks.Critic(heads), TORSO)


def _ppo(env=CARTPOLE, network=None, learning_rate=1e-3, **options):
    options = {"num_envs": 4, "num_steps": 8, "num_epochs": 2, "num_minibatches": 2} | options
    return ppo.make(*env, network or separate(), adam(learning_rate), **options)


def _a2c(env=CARTPOLE, network=None, learning_rate=1e-3, **options):
    return a2c.make(*env, network or separate(), adam(learning_rate), **{"num_envs": 4} | options)


def _reinforce(env=CARTPOLE, actor=None, learning_rate=1e-3, **options):
    options = {"num_episodes": 3, "max_steps": 12} | options
    return reinforce.make(*env, actor or categorical(), adam(learning_rate), **options)


def _reinforce_critic(env=CARTPOLE, actor=None, learning_rate=1e-3, **options):
    options = {"num_episodes": 3, "max_steps": 12, "num_critic_steps": 3} | options
    networks_and_optimizers = actor or categorical(), adam(learning_rate), critic(), adam()
    return reinforce.make(*env, *networks_and_optimizers, **options)


def _actor_critic(env=CARTPOLE, actor=None, learning_rate=1e-3, **options):
    options = {"num_envs": 4, "num_updates": 3} | options
    q = options.get("all_action", False)
    value = networks.QNetwork(2, TORSO) if q else critic()
    return actor_critic.make(*env, actor or categorical(), value, adam(learning_rate), adam(), **options)


def _trust(module, env=CARTPOLE, actor=None, learning_rate=1e-3, **options):
    options = {"num_envs": 4, "num_steps": 8, "critic_epochs": 2, "critic_minibatches": 2} | options
    return module.make(*env, actor or categorical(), critic(), adam(learning_rate), **options)


def _acktr(env=CARTPOLE, actor=None, learning_rate=0.1, **options):
    options = {"num_envs": 4, "num_steps": 5, "num_updates": 2} | options
    optimizers = kfac_optimizer(learning_rate), kfac_optimizer(0.1)
    return acktr.make(*env, actor or categorical(), critic(), *optimizers, **options)


def _a3c(env=CARTPOLE, network=None, learning_rate=1e-3, **options):
    options = {"num_workers": 3, "num_envs": 2, "num_updates": 4} | options
    return a3c.make(*env, network or separate(), adam(learning_rate), **options)


SMALL = {"num_envs": 2, "num_updates": 3, "batch_size": 8, "capacity": 40, "warmup_steps": 16}


def _dqn(env=CARTPOLE, network=None, learning_rate=1e-3, **options):
    options = SMALL | {"exploration_steps": 60, "target_period": 2} | options
    return dqn.make(*env, network or networks.QNetwork(2, TORSO), adam(learning_rate), **options)


def _online(module, env=CARTPOLE, learning_rate=1e-3, **options):
    options = {"num_envs": 2, "num_updates": 4} | options
    return module.make(*env, networks.QNetwork(2, TORSO), adam(learning_rate), **options)


LOW, HIGH = (-2.0,), (2.0,)


def pair_value():
    return networks.ActionCritic(LOW, HIGH, OTHER_TORSO)


def _deterministic(module, env=PENDULUM, learning_rate=1e-3, **options):
    actor = networks.DeterministicActor(LOW, HIGH, TORSO)
    return module.make(*env, actor, pair_value(), adam(learning_rate), adam(learning_rate), **SMALL | options)


def _sac(env=PENDULUM, actor=None, value=None, learning_rate=1e-3, **options):
    parts = actor or networks.TanhGaussianActor(LOW, HIGH, TORSO), value or pair_value()
    optimizers = [adam(learning_rate) for _ in range(3)]
    return sac.make(*env, *parts, *optimizers, **SMALL | options)


def standardized(traj, valid, value):
    to_go = pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated)
    return pgjax.standardize(to_go - value(traj.obs), valid)


GAUSSIAN = networks.GaussianActor(1, networks.MLP(hidden=(8,), activation=nn.relu))
SQUASHED = networks.TanhGaussianActor((-2.0,), (2.0,), TORSO)


class Masked:
    """CartPole that forbids its first action in some states, and says so beside the observation."""

    env, _ = CARTPOLE

    def action_space(self, params):
        return self.env.action_space(params)

    def observe(self, obs):
        return {"obs": obs, "action_mask": jnp.stack([obs[2] > 0, jnp.ones((), bool)])}

    def reset(self, key, params):
        obs, state = self.env.reset(key, params)
        return self.observe(obs), state

    def step(self, key, state, action, params):
        obs, state, *rest, info = self.env.step(key, state, action, params)
        info = {"final_observation": self.observe(info["final_observation"])}
        return self.observe(obs), state, *rest, info


MASKED = Masked(), CARTPOLE[1]

ZOO = {
    "ppo-masked": lambda **o: _ppo(MASKED, shared(), normalize_obs=True, **o),
    "ppo": _ppo,
    "ppo-shared": lambda **o: _ppo(network=shared(), **o),
    "ppo-continuous": lambda **o: _ppo(
        PENDULUM, separate(GAUSSIAN), normalize_obs=True, normalize_reward=True, **o
    ),
    "ppo-squashed": lambda **o: _ppo(PENDULUM, separate(SQUASHED), **o),
    "ppo-kl": lambda **o: _ppo(
        clip_eps=jnp.inf, value_clip_eps=jnp.inf, kl_coef=1.0, kl_target=0.01, max_kl=0.02, **o
    ),
    "a2c": _a2c,
    "a2c-continuous": lambda **o: _a2c(PENDULUM, separate(GAUSSIAN), normalize_advantage=True, **o),
    "reinforce": _reinforce,
    "reinforce-critic": _reinforce_critic,
    "reinforce-weight": lambda **o: _reinforce_critic(weight=standardized, discount_time=True, **o),
    "reinforce-continuous": lambda **o: _reinforce_critic(PENDULUM, GAUSSIAN, **o),
    "actor-critic": _actor_critic,
    "npg": lambda **o: _trust(npg, **o),
    "npg-fixed": lambda **o: _trust(npg, max_kl=None, step_size=0.01, num_chunks=2, **o),
    "trpo": lambda **o: _trust(trpo, **o),
    "trpo-continuous": lambda **o: _trust(trpo, PENDULUM, GAUSSIAN, fisher_stride=2, cg_iters=20, **o),
    "acktr": _acktr,
    "acktr-continuous": lambda **o: _acktr(PENDULUM, GAUSSIAN, normalize_advantage=True, **o),
    "a3c": _a3c,
    "a3c-corrected": lambda **o: _a3c(corrected=True, random_order=True, delay=1, **o),
    "dqn": _dqn,
    "dqn-options": lambda **o: _dqn(
        network=networks.DuelingQNetwork(2, TORSO), double=True, n_step=3, huber=True, num_steps=2, **o
    ),
    "dqn-masked": lambda **o: _dqn(MASKED, **o),
    "q_learning": lambda **o: _online(q_learning, **o),
    "sarsa": lambda **o: _online(sarsa, **o),
    "ddpg-continuous": lambda **o: _deterministic(ddpg, noise_correlation=0.5, **o),
    "td3-continuous": lambda **o: _deterministic(td3, **o),
    "sac-continuous": lambda **o: _sac(num_gradient_steps=2, noise_correlation=0.5, **o),
    "sac-discrete": lambda **o: _sac(CARTPOLE, categorical(), networks.QNetwork(2, OTHER_TORSO), **o),
    "actor-critic-q": lambda **o: _actor_critic(all_action=True, discount_time=True, **o),
}
