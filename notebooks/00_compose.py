# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Composing an estimator
#
# A policy gradient estimator is the score of every action times a weight Ψ:
#
# $$\hat g = \frac1N \sum_{i=1}^N \sum_t \nabla_\theta \log \pi_\theta(a_{i,t} \mid s_{i,t})\, \Psi_{i,t}$$
#
# Many weights give the same gradient on average; they differ in how much they scatter. Here we collect whole
# episodes once, compute the gradient of every single episode for five weights, and compare how noisy they are.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import pgjax
from pgjax import networks

QUICK = os.environ.get("PGJAX_NOTEBOOK_QUICK") == "1"
NUM_EPISODES = 64 if QUICK else 1024

env, env_params = pgjax.envs.make("CartPole-v1")
actor = networks.CategoricalActor(num_actions=2, torso=networks.MLP(hidden=(16,)))
key, params_key, act_key = jax.random.split(jax.random.key(0), 3)
params = actor.init(params_key, env.reset(key, env_params)[0])

# %% [markdown]
# ## Whole episodes
# One episode a column. `valid` marks the steps that belong to it; what lies behind its end counts for nothing.


# %%
def policy(key, obs):
    return actor.apply(params, obs).sample_and_log_prob(key)


traj, valid = pgjax.rollout_episodes(act_key, policy, env, env_params, NUM_EPISODES, max_steps=100)
print("observations", traj.obs.shape, " mean length", float(valid.sum(0).mean()))

# %% [markdown]
# ## Five weights
# The total return repeats the whole episode's reward at every step, the rewards *before* the action included. The
# reward-to-go drops those: they cannot depend on the action. Baselines subtract what was to be expected anyway.
# Leave-one-out and the linear fit of *other* data keep the estimate unbiased; a fit on the same episodes does not
# quite.

# %%
to_go = pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated)
features = pgjax.time_features(traj.obs)
baselines = {
    "reward-to-go": jnp.zeros_like(to_go),
    "… minus its mean": pgjax.constant_baseline(to_go, valid),
    "… minus leave-one-out": pgjax.leave_one_out_baseline(to_go, valid),
    "… minus a linear fit": pgjax.linear_baseline(features, to_go, valid),
}
weights = {"total return": pgjax.total_return(traj.reward, valid)}
weights |= {name: pgjax.subtract_baseline(to_go, b, valid) for name, b in baselines.items()}

# %% [markdown]
# ## How much each scatters
# `trajectory_gradients` gives the gradient of every episode; their mean is `policy_gradient`. The trace of their
# covariance is the variance of an estimate from one episode; from N episodes it is N times smaller.


# %%
def flat_gradients(weight):
    gradients = pgjax.trajectory_gradients(actor.apply, params, traj, weight, valid)
    return jnp.concatenate([g.reshape(NUM_EPISODES, -1) for g in jax.tree.leaves(gradients)], axis=1)


noise = {}
for name, weight in weights.items():
    gradients = flat_gradients(weight)
    noise[name] = float(gradients.var(0).sum())
    print(
        f"{name:24s} variance {noise[name]:10.1f}   norm of the mean {jnp.linalg.norm(gradients.mean(0)):6.2f}"
    )

# %%
figure, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
ax.barh(list(noise), list(noise.values()), color="tab:blue")
ax.invert_yaxis()
ax.set_xlabel("variance of the gradient from one episode (trace of the covariance)")
ax.set_title(f"The same gradient, less noise: CartPole-v1, {NUM_EPISODES} episodes")
plt.show()

# %% [markdown]
# ## The same as a loss
# Optimizers descend. The gradient of the summed `score_function_loss`, averaged over episodes, is minus the policy
# gradient, so either form can stand in a training step.

# %%
weight = weights["… minus leave-one-out"]


def loss(params):
    log_prob = actor.apply(params, traj.obs).log_prob(traj.action)
    return jnp.sum(pgjax.score_function_loss(log_prob, weight), where=valid) / NUM_EPISODES


ascent = pgjax.policy_gradient(actor.apply, params, traj, weight, valid)
difference = jax.tree.map(lambda a, d: jnp.abs(a + d).max(), ascent, jax.grad(loss)(params))
print("largest difference", max(float(d) for d in jax.tree.leaves(difference)))
assert max(float(d) for d in jax.tree.leaves(difference)) < 1e-3
