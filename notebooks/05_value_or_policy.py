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
# # Value or policy
#
# One family of methods learns how good actions are and takes the best one. The other learns what to do and moves that
# directly. Modern deep reinforcement learning has both, and mixtures. This notebook, step 9 of the derivation, says how
# they hang together and measures where they differ. Each claim is followed by the code that holds it; where something
# is measured on a few seeds it says on how many, and it is a measurement of these settings, no ranking.
#
# | section | |
# |---|---|
# | 9.1 | the map: from two theorems to DQN, DDPG, TD3 and SAC |
# | 9.2 | what DQN and PPO learn, and what is left in hand at the end |
# | 9.3 | greedy against stochastic policies |
# | 9.4 | continuous actions: an actor is an argmax that was learned |
# | 9.5 | how smoothly a policy follows an update |
# | 9.6 | exploration |
# | 9.7 | environment steps against seconds |
# | 9.8 | asynchrony: A3C and the delay |

# %%
import itertools
import os
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import pgjax
from pgjax import networks, tabular
from pgjax.algorithms import a2c, a3c, dqn, ppo, q_learning, td3
from pgjax.distributions import Categorical, DiagGaussian
from pgjax.experiment.statistics import interval, iqm
from pgjax.losses import policy as policy_losses
from pgjax.losses import value as value_losses

QUICK = os.environ.get("PGJAX_NOTEBOOK_QUICK") == "1"
BLUE, ORANGE = "tab:blue", "tab:orange"  # values, policies


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


def program(function, *args, soon=True):
    """Compiled ahead, so that a clock sees the device alone; `soon` compiles in half the time to slower code."""
    soonest = {"xla_backend_optimization_level": 0 if QUICK else 1}
    if jax.__version_info__ < (0, 11):
        soonest["xla_cpu_use_fusion_emitters"] = False
    cpu = jax.default_backend() == "cpu"
    options = soonest if cpu and (soon or QUICK) else None
    return jax.jit(function).lower(*args).compile(compiler_options=options)


def train(algorithm, seeds, iterations):
    """All seeds in one program: final states, metrics `[seeds, iterations]`, and seconds without compiling."""
    keys = jax.random.split(jax.random.key(0), seeds)
    run = program(lambda keys: pgjax.train(keys, algorithm, iterations), keys, soon=False)
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(run(keys))
    return state, numpy(metrics), time.perf_counter() - start


def curve(metrics, points):
    """The mean return of the episodes that ended in each part of the run: `[seeds, points]`."""

    def parts(name):
        x = metrics[name].astype(float)
        used = x.shape[1] // points * points
        return x[:, :used].reshape(len(x), points, -1).sum(-1)

    return parts("episode_return_sum") / np.where(parts("episodes") > 0, parts("episodes"), np.nan)


def draw(ax, x, runs, color, label, marker=""):
    """The interquartile mean over the seeds and its 95 % bootstrap interval."""
    ax.plot(x, iqm(runs), color=color, label=label, marker=marker)
    ax.fill_between(x, *interval(runs), color=color, alpha=0.2, linewidth=0)


def said(x):
    """The same in words."""
    low, high = interval(np.asarray(x))
    return f"{iqm(x):7.1f} [{low:.1f}, {high:.1f}]"


def dress(ax, title, x, y="", legend="best", **settings):
    ax.set(title=title, xlabel=x, ylabel=y, **settings)
    if legend:
        ax.legend(loc=legend, fontsize=9)


# %% [markdown]
# ## 9.1 The map
# Two equations stand at the top. The **policy gradient theorem** says how the return moves with the policy. The
# **Bellman equations** say what a value has to satisfy: that of a policy, or, with a maximum in it, that of the best one.

# %%
POLICY, VALUE, BOTH = "#fbe3cc", "#d6e6f5", "#e3dcef"
BOXES = {  # name: (x, y, colour, text)
    "pgt": (0.0, 5.0, POLICY, "policy gradient theorem\n∇J = Σ d(s) Σ ∇π(a|s) Q(s,a)"),
    "ac": (0.0, 3.9, POLICY, "REINFORCE, A2C, A3C\nown data, score × weight"),
    "ppo": (0.0, 2.8, POLICY, "NPG, TRPO, PPO\nown data, steps kept short"),
    "dpg": (1.25, 3.9, BOTH, "deterministic policy gradient\n∇J = Σ d(s) ∇μ(s) ∇ₐQ(s,a)"),
    "ddpg": (1.25, 2.8, BOTH, "DDPG\nreplay, target networks"),
    "td3": (1.25, 1.7, BOTH, "TD3\nlower of two critics, delay, noise"),
    "sac": (1.25, 0.6, BOTH, "SAC\nstochastic again, entropy bonus"),
    "bellman": (3.05, 5.0, VALUE, "Bellman, for a policy\nQ = r + γ E Q(s',a')"),
    "best": (4.3, 5.0, VALUE, "Bellman, optimality\nQ = r + γ E max Q(s',a')"),
    "sarsa": (3.05, 3.9, VALUE, "SARSA\na' as it was drawn"),
    "expected": (3.05, 2.8, VALUE, "expected SARSA\na' averaged over π"),
    "q": (4.3, 3.9, VALUE, "Q-learning\na' greedy"),
    "dqn": (4.3, 2.8, VALUE, "DQN\nnetwork, replay, target network"),
}
ARROWS = [
    ("pgt", "ac", ""), ("ac", "ppo", ""), ("pgt", "dpg", "σ → 0"), ("dpg", "ddpg", ""), ("ddpg", "td3", ""),
    ("td3", "sac", ""), ("bellman", "sarsa", ""), ("sarsa", "expected", "averaged"), ("best", "q", ""),
    ("q", "dqn", ""), ("expected", "q", "π greedy"), ("expected", "sac", "target, at α = 0"),
    ("dqn", "ddpg", "replay and\ntarget networks"),
]  # fmt: skip
figure, ax = plt.subplots(figsize=(13.5, 6.2), layout="constrained")
patches = {}
for name, (x, y, color, text) in BOXES.items():
    box = {"boxstyle": "round,pad=0.45", "facecolor": color, "edgecolor": "grey"}
    patches[name] = ax.text(
        x, y, text, ha="center", va="center", fontsize=9.5, bbox=box, zorder=3
    ).get_bbox_patch()
BENT = {("dqn", "ddpg"): "arc3,rad=-0.42"}
LABEL_AT = {("dqn", "ddpg"): (3.05, 1.35), ("expected", "sac"): (1.75, 1.21)}
for start, end, text in ARROWS:
    (x0, y0), (x1, y1) = BOXES[start][:2], BOXES[end][:2]
    style = {"arrowstyle": "-|>", "color": "dimgrey", "shrinkA": 2, "shrinkB": 2, "mutation_scale": 14}
    style |= {"patchA": patches[start], "patchB": patches[end]}
    style["connectionstyle"] = BENT.get((start, end), "arc3")
    ax.annotate("", (x1, y1), (x0, y0), arrowprops=style, zorder=1)
    place = LABEL_AT.get((start, end), ((x0 + x1) / 2, (y0 + y1) / 2))
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    ax.text(
        *place, text, ha="center", va="center", fontsize=8.5, style="italic", bbox=white if text else None
    )
for x, text in ((0.0, "learn what to do"), (1.25, "both"), (3.675, "learn what actions are worth")):
    ax.text(x, 5.75, text, ha="center", fontsize=12, weight="bold")
ax.set(xlim=(-0.65, 4.95), ylim=(0.2, 6.0))
ax.axis("off")
plt.show()

# %% [markdown]
# | | what is learned | whose data | what is followed |
# |---|---|---|---|
# | SARSA | $Q^\pi(s,a)$ | its own | the Bellman equation of its policy, next action as drawn |
# | expected SARSA | $Q^\pi(s,a)$ | anyone's | the same, averaged over the policy |
# | Q-learning, DQN | $Q^*(s,a)$ | anyone's; DQN keeps its own old data | the Bellman optimality equation |
# | A2C, PPO | $\pi(a\mid s)$, and $V^\pi(s)$ to help | its own, just drawn | the policy gradient |
# | DDPG, TD3 | $\mu(s)$ and $Q^\mu(s,a)$ | its own old data | $\nabla_a Q$, through the action |
# | SAC | $\pi(a\mid s)$ and the soft $Q^\pi(s,a)$ | its own old data | $\nabla_a Q$, through a sample, and the entropy |
#
# **The deterministic policy gradient is the limit of the stochastic one** (Silver et al. 2014, theorem 2). Take one state,
# a value $Q(a)$ and a Gaussian policy with mean μ. The gradient in μ is $\mathbb{E}\,Q'(a)$, and expanding it around μ,
#
# $$\nabla_\mu\, \mathbb{E}_{a\sim N(\mu,\sigma^2)}\, Q(a) = Q'(\mu) + \tfrac12\sigma^2 Q'''(\mu) + O(\sigma^4)$$
#
# so the error is of order σ². What differs on the way are the *estimators*. The score function multiplies
# $(a-\mu)/\sigma^2$ by $Q(a)$: its variance grows like $Q(\mu)^2/\sigma^2$. The pathwise one,
# $Q'(\mu + \sigma\varepsilon)$, stays bounded, and for small σ even falls. A baseline $Q(\mu)$ also keeps the score function bounded, here. But that
# is one dimension: with D of them every component carries the noise of all D.

# %%
MU, SIGMAS = 0.4, np.geomspace(0.01, 0.5, 9)
nodes, weights = np.polynomial.hermite_e.hermegauss(60)
weights = weights / weights.sum()


def hill(action):
    return 2.0 + jnp.sin(2.0 * action) - 0.3 * action**2


def hill_slope(action):
    return 2.0 * np.cos(2.0 * action) - 0.6 * action


smoothed = np.array([weights @ hill_slope(MU + sigma * nodes) for sigma in SIGMAS])  # float64, by quadrature
limit_error = np.abs(smoothed - hill_slope(MU))


@jax.jit
def estimates(sigma):
    """Gradients in μ, one a sample, from the losses of the library: score function, with a baseline, pathwise."""

    def one(key):
        def losses(mu):
            policy = DiagGaussian(mu[None], jnp.log(sigma)[None])
            action = policy.sample(key)
            log_prob = policy.log_prob(jax.lax.stop_gradient(action))
            weight = hill(action[0])
            return jnp.stack(
                [
                    policy_losses.score_function_loss(log_prob, weight),
                    policy_losses.score_function_loss(log_prob, weight - hill(MU)),
                    policy_losses.deterministic_policy_loss(weight),
                ]
            )

        return -jax.jacobian(losses)(jnp.asarray(MU))

    return jax.vmap(one)(jax.random.split(jax.random.key(1), 100_000))


samples = np.stack([estimates(jnp.float32(sigma)) for sigma in SIGMAS]).astype(
    float
)  # [sigma, sample, estimator]
variances, off = samples.var(1), np.abs(samples.mean(1) - smoothed[:, None])
print("   σ      ∇ − Q'(μ)    variance: score function   with baseline   pathwise")
for row in zip(SIGMAS, limit_error, *variances.T, strict=True):
    print("{:.3f} {:12.2e} {:26.3f} {:15.3f} {:10.4f}".format(*row))


def slope(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


small = SIGMAS < 0.2
error_slope, variance_slope = (
    slope(SIGMAS[small], limit_error[small]),
    slope(SIGMAS[small], variances[small, 0]),
)
print(
    f"slopes in a log-log plot: error {error_slope:.3f}, variance of the score function {variance_slope:.3f}"
)
assert abs(error_slope - 2.0) < 0.05
assert abs(variance_slope + 2.0) < 0.05
assert abs(limit_error[0] / (0.5 * SIGMAS[0] ** 2 * 8.0 * np.cos(2.0 * MU)) - 1) < 0.01  # ½ σ² |Q'''|
assert (off < 5.0 * np.sqrt(variances / samples.shape[1]) + 1e-4).all()  # all three are unbiased
assert variances[:, 2].max() < 2.0  # pathwise: bounded, and it even falls with σ
assert variances[:, 1].max() < 5.0 * hill_slope(MU) ** 2  # with a baseline too, in one dimension

# %% [markdown]
# **The arrows on the right** are identities between losses. Expected SARSA under a greedy policy is Q-learning. The
# targets of SAC without a temperature are those of expected SARSA; and with one critic and a sampled action it is the loss
# of DDPG. The library's losses agree to rounding.

# %%
rng = np.random.default_rng(0)
q, next_q = (jnp.asarray(rng.normal(size=(64, 5)), jnp.float32) for _ in range(2))
action, reward, ended = jnp.asarray(rng.integers(5, size=64)), q.mean(-1), jnp.asarray(rng.random(64) < 0.2)
some_policy = Categorical(jnp.asarray(rng.normal(size=(64, 5)), jnp.float32))
greedy_policy = jax.nn.one_hot(next_q.argmax(-1), 5)
taken = action, reward, next_q
by_q_learning = value_losses.q_learning_loss(q, *taken, ended, gamma=0.9)
by_greedy = value_losses.expected_sarsa_loss(q, *taken, greedy_policy, ended, gamma=0.9)
by_expected = value_losses.expected_sarsa_loss(q, *taken, some_policy.probs, ended, gamma=0.9)
by_soft = value_losses.expected_soft_q_loss(
    q[None], action, reward, next_q[None], some_policy.log_probs, ended, gamma=0.9, alpha=0.0
)
pair = q[None, :, 0], reward, next_q[None, :, 0]
by_ddpg = value_losses.clipped_double_q_loss(*pair, ended, gamma=0.9)
by_sac = value_losses.soft_q_loss(*pair, some_policy.log_probs[:, 0], ended, gamma=0.9, alpha=0.0)
for text, one, other in (
    ("expected SARSA, π greedy     = Q-learning    ", by_greedy, by_q_learning),
    ("SAC, actions averaged, α = 0 = expected SARSA", by_soft[0], by_expected),
    ("SAC, one critic, α = 0       = DDPG          ", by_sac, by_ddpg),
):
    print(text, "   largest difference", float(jnp.abs(one - other).max()))
    assert jnp.abs(one - other).max() < 1e-5
assert jnp.abs(by_expected - by_q_learning).max() > 0.1  # another policy, another target

figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
axes[0].loglog(SIGMAS, limit_error, "o-", color=BLUE, label="|∇ − Q'(μ)|, by quadrature")
axes[0].loglog(SIGMAS, 4.0 * np.cos(2.0 * MU) * SIGMAS**2, "k:", label="½ σ² |Q'''(μ)|")
for i, (label, c) in enumerate(
    (("score function", ORANGE), ("with baseline Q(μ)", "tan"), ("pathwise", BLUE))
):
    axes[1].loglog(SIGMAS, variances[:, i], "o-", color=c, label=label)
dress(axes[0], "The stochastic gradient tends to the deterministic one", "σ", "distance")
dress(axes[1], "What one sample costs", "σ", "variance of one sample")
plt.show()

# %% [markdown]
# ## 9.2 What each learns
# DQN and PPO on CartPole, where every step pays 1 and an episode is cut after 500. Both have networks of (64, 64) and the
# same number of environment steps. DQN explores with an ε that falls from 1 to 0.02 over the first fifth, and copies its
# target network every 50 gradient steps. PPO's rate falls to zero. The settings are the best of nine tried for DQN and
# of six for PPO, on the same problem and with five of the same seeds, so both are flattered. The curves are returns *while learning*, so DQN's ε and PPO's sampling are in them.
#
# For 9.5 both also report how far each iteration moved the policy on 512 fixed observations. That costs next to nothing
# and changes nothing: it wraps the algorithm's `step`.

# %%
SEEDS, CART_STEPS = (2, 6_000) if QUICK else (8, 200_000)
CART_GAMMA = 0.99
cart, cart_params = pgjax.envs.make("CartPole-v1")
PROBES = jax.random.uniform(jax.random.key(7), (512, 4), minval=-1.0) * jnp.array([2.0, 1.5, 0.2, 1.5])


def watch(algorithm, look):
    """The same algorithm; each iteration says how far it moved `look(key, state)`, the policy on the probes."""

    def step(key, state):
        new, metrics = algorithm.step(key, state)
        before, after = look(key, state), look(key, new)
        moved = 0.5 * jnp.abs(after - before).sum(-1)
        flipped = before.argmax(-1) != after.argmax(-1)
        return new, metrics | {"moved": moved.mean(), "most_moved": moved.max(), "flipped": flipped.mean()}

    return algorithm._replace(step=step)


q_network = networks.QNetwork(2, networks.MLP((64, 64)))
cart_dqn = dqn.make(
    cart,
    cart_params,
    q_network,
    optax.chain(optax.clip_by_global_norm(10.0), optax.adam(5e-4)),
    num_updates=100,
    batch_size=64,
    capacity=50_000,
    warmup_steps=1000,
    gamma=CART_GAMMA,
    epsilon_end=0.02,
    exploration_steps=CART_STEPS // 5,
    target_period=50,
)
dqn_iterations = CART_STEPS // 1000

cart_network = networks.ActorCritic(
    networks.CategoricalActor(2, networks.MLP((64, 64))), networks.Critic(networks.MLP((64, 64)))
)
ppo_iterations = CART_STEPS // 1024
cart_ppo = ppo.make(
    cart,
    cart_params,
    cart_network,
    optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adam(optax.linear_schedule(2e-3, 0.0, ppo_iterations * 16), eps=1e-5),
    ),
    num_envs=8,
    num_steps=128,
    gamma=CART_GAMMA,
    value_clip_eps=jnp.inf,
)

cart_runs = {
    "DQN": train(
        watch(cart_dqn, lambda key, state: jax.nn.one_hot(cart_dqn.act(key, state, PROBES), 2)),
        SEEDS,
        dqn_iterations,
    ),
    "PPO": train(
        watch(cart_ppo, lambda key, state: cart_network.apply(state.learned.params, PROBES)[0].probs),
        SEEDS,
        ppo_iterations,
    ),
}
POINTS = 3 if QUICK else 20
for name, (_, metrics, _) in cart_runs.items():
    ends = curve(metrics, 4 if not QUICK else 3)[:, -1]
    print(f"{name}: return in the last quarter {said(ends)}, seeds from {ends.min():.0f} to {ends.max():.0f}")
    if not QUICK:
        assert iqm(ends) > 250
assert {metrics["env_steps"].sum(1).max() // 1000 for _, metrics, _ in cart_runs.values()} <= {
    CART_STEPS // 1000 + k for k in (-1, 0, 1)
}

# %% [markdown]
# **What is left in hand.** DQN ends with a number for every action, and a policy only by way of them. PPO ends with
# probabilities, and with a number for every state that is a by-product. How good are the numbers? We ask both for the
# value of the start states, then play from there, with the actions each has learned: DQN's greedily, PPO's both ways. Played
# are whole episodes, whose discounted return misses at most $\gamma^{500}/(1-\gamma) = 0.66$ of the value, which does
# not end at the limit.

# %%
NUM_PLAYED = 16 if QUICK else 64


def play(key, act):
    """Discounted and plain returns of whole episodes, and where they start."""
    policy = lambda key, obs: (act(key, obs), jnp.zeros(NUM_PLAYED))  # noqa: E731
    traj, valid = pgjax.rollout_episodes(key, policy, cart, cart_params, NUM_PLAYED, 500)
    to_go = pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=CART_GAMMA)
    return to_go[0].mean(), valid.sum(0).mean(), traj.obs[0]


def judge(inputs):
    """Of one seed: predicted value and what was obtained."""
    q_params, params = inputs
    key = jax.random.key(11)
    policies = {
        "DQN, greedy": lambda key, obs: q_network.apply(q_params, obs).argmax(-1),
        "PPO, sampled": lambda key, obs: cart_network.apply(params, obs)[0].sample(key),
        "PPO, most probable": lambda key, obs: cart_network.apply(params, obs)[0].mode(),
    }
    found = {}
    for name, act in policies.items():
        discounted, plain, start = play(key, act)
        says = (
            q_network.apply(q_params, start).max(-1)
            if "DQN" in name
            else cart_network.apply(params, start)[1]
        )
        found[name] = {"predicted": says.mean(), "discounted": discounted, "return": plain}
    return found


finals = cart_runs["DQN"][0].learned.params, cart_runs["PPO"][0].learned.params
judged = numpy(program(lambda inputs: jax.lax.map(judge, inputs), finals)(finals))
print(
    "                     predicted value          discounted return        predicted − obtained     return"
)
for name, x in judged.items():
    x["gap"] = x["predicted"] - x["discounted"]
    print(f"{name:18s}", *(f"{said(x[key]):24s}" for key in ("predicted", "discounted", "gap", "return")))
lies_above = int((judged["DQN, greedy"]["gap"] > 0).sum())
print(f"DQN promises more than its greedy policy obtains in {lies_above} seeds of {SEEDS}")
if not QUICK:
    assert iqm(np.abs(judged["PPO, sampled"]["gap"])) < 5

figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
for (name, (_, metrics, _)), c in zip(cart_runs.items(), (BLUE, ORANGE), strict=True):
    points = curve(metrics, POINTS)
    x = (np.arange(POINTS) + 0.5) / POINTS * CART_STEPS
    axes[0].plot(x, points.T, color=c, alpha=0.25, lw=0.8)
    draw(axes[0], x, points, c, name)
for (name, x), c, mark in zip(judged.items(), (BLUE, ORANGE, "tan"), "osd", strict=True):
    axes[1].plot(x["discounted"], x["predicted"], mark, color=c, label=name, alpha=0.8)
span = [
    min(x["discounted"].min() for x in judged.values()) - 3,
    max(100.0, judged["DQN, greedy"]["predicted"].max()) + 3,
]
axes[1].plot(span, span, "k:", lw=1, label="predicted = obtained")
dress(axes[0], f"Return while learning, {SEEDS} seeds", "environment steps", "return", ylim=(0, 520))
dress(axes[1], "The value of the start, said and obtained", "discounted return obtained", "value predicted")
plt.show()

# %% [markdown]
# With these settings PPO reaches the limit in nearly all seeds and DQN does not. DQN's numbers lie, in most seeds, above
# what its policy obtains: the maximum of noisy values does that, the more where the policy is worse than it thinks (`double=True` is there
# against it). PPO's $V$ is off by little more than the episodes' cut. But $V$ is no policy, and it would not be enough to act on;
# DQN's $Q$ is.
#
# ## 9.3 Greedy against stochastic policies
# [Notebook 03](03_boltzmann.ipynb) shows exactly why a greedy policy fails where states look alike. Here both kinds *learn*
# in such a problem. Five cells in a row; below the ends are pits (−1), below the middle is the goal (+1). Every cell of the
# row is a start. The two cells between corner and middle look the same, `a`.
#
# ```
#   ┌───┬───┬───┬───┬───┐
#   │ b │ a │ c │ a │ d │
#   ├───┼───┼───┼───┼───┤
#   │pit│ # │ G │ # │pit│
#   └───┴───┴───┴───┴───┘
# ```
#
# Without memory, and with one action for `a`, half of the row never gets to the goal. Which deterministic policy is best
# is found by trying all 4⁴; for stochastic ones we turn the probability of going right in `a`. γ is 0.9, and every $J$ below
# is exact.

# %%
GAMMA, UP, RIGHT, DOWN, LEFT = 0.9, 0, 1, 2, 3


def seen_as(mdp, observations):
    """The same problem, in which a policy sees these one-hot."""
    return tabular.TabularMDP(
        mdp.transition,
        mdp.reward,
        mdp.initial,
        mdp.gamma,
        terminal=mdp.terminal,
        features=np.eye(8)[observations],
    )


LOOKS = np.array([0, 1, 2, 1, 3, 4, 4, 4])  # b a c a d, and the terminal states
room = seen_as(tabular.grid_mdp(["SSSSS", "X#G#X"], GAMMA), LOOKS)


@jax.jit
def exact_return(mdp, policies):
    """J of policies `[..., 8, 4]` that know the state."""
    flat = policies.reshape(-1, 8, 4)
    return jax.lax.map(
        lambda policy: tabular.state_value(mdp, policy) @ mdp.initial, flat, batch_size=128
    ).reshape(policies.shape[:-2])


by_look = np.array(list(itertools.product(np.eye(4), repeat=4)))  # [256, look, action]
padded = np.concatenate([by_look, np.full((256, 1, 4), 0.25)], 1)
J_deterministic = float(exact_return(room, padded[:, LOOKS]).max())
chance = np.linspace(0.0, 1.0, 201)
turned = np.repeat(np.eye(4)[[RIGHT, RIGHT, DOWN, LEFT, UP]][None], 201, 0)  # b right, c down, d left
turned[:, 1] = np.outer(chance, np.eye(4)[RIGHT]) + np.outer(1 - chance, np.eye(4)[LEFT])
J_turned = numpy(exact_return(room, turned[:, LOOKS]))
J_stochastic, p_best = float(J_turned.max()), chance[J_turned.argmax()]
others = np.random.default_rng(1).dirichlet(np.full(4, 0.2), (4000, 5))
print(
    f"best deterministic {J_deterministic:.3f}, best stochastic {J_stochastic:.3f} with p(right | a) = {p_best:.2f}"
)
print(f"with states that can be seen {float(tabular.optimal_value(room) @ room.initial):.3f}")
assert abs(p_best - 0.5) < 1e-9
assert np.isclose(J_deterministic, (1 + GAMMA + GAMMA**2) / 5, atol=1e-5)
value_a = 0.5 * GAMMA / (1 - 0.5 * GAMMA**2)
assert np.isclose(J_stochastic, (1 + 2 * value_a + 2 * GAMMA * value_a) / 5, atol=1e-5)
assert exact_return(room, others[:, LOOKS]).max() < J_stochastic

# %% [markdown]
# Q-learning has a table of values for the eight observations, A2C a table of preferences and one of values. Both are
# written so that the problem and the settings are *arguments* of the compiled program: 9.6 uses the same two programs.

# %%
TABLE_SEEDS, TABLE_ITERATIONS = (4, 8) if QUICK else (16, 50)
TABLE_ENVS = 8
TABLE_STEPS = TABLE_ITERATIONS * 100 * TABLE_ENVS


class Table:
    """Q values; they start at a level, with noise to break ties by chance."""

    def __init__(self, level):
        self.level = level

    def init(self, key, obs):
        return self.level + 1e-3 * jax.random.normal(key, (8, 4))

    def apply(self, theta, obs):
        return obs @ theta


class SoftmaxTable:
    """Preferences and state values, all zero at the start: every action is as likely."""

    def init(self, key, obs):
        return jnp.zeros((8, 5))

    def apply(self, theta, obs):
        return Categorical(obs @ theta[:, :4]), obs @ theta[:, 4]


def learn_values(keys, mdp, settings):
    algorithm = q_learning.make(
        pgjax.envs.TimeLimit(mdp, 50),
        None,
        Table(settings["level"]),
        optax.sgd(0.1 * TABLE_ENVS),  # 0.1 for every single step
        num_envs=TABLE_ENVS,
        num_updates=100,
        gamma=GAMMA,
        epsilon_start=settings["epsilon_start"],
        epsilon_end=settings["epsilon"],
        exploration_steps=TABLE_STEPS // 2,
    )
    return pgjax.train(keys, algorithm, TABLE_ITERATIONS)[0].learned.params


def learn_policy(keys, mdp, settings):
    algorithm = a2c.make(
        pgjax.envs.TimeLimit(mdp, 50),
        None,
        SoftmaxTable(),
        optax.sgd(settings["rate"] * TABLE_ENVS),
        num_envs=TABLE_ENVS,
        num_steps=5,
        gamma=GAMMA,
        lambda_=0.95,
        entropy_coef=settings["entropy"],
    )
    return pgjax.train(keys, algorithm, TABLE_ITERATIONS * 20)[0].learned.params[..., :4]


table_keys = jax.random.split(jax.random.key(0), TABLE_SEEDS)
EPSILONS, RATES = {"epsilon_start": 0.1, "epsilon": 0.1, "level": 0.0}, {"rate": 0.3, "entropy": 0.0}
values_program = program(learn_values, table_keys, room, EPSILONS)
policy_program = program(learn_policy, table_keys, room, RATES)


def greedy(theta, mdp):
    """Of values or of preferences `[seeds, 8, 4]`, as probabilities in every state."""
    return np.eye(4)[(numpy(mdp.features) @ numpy(theta)).argmax(-1)]


action_values = values_program(table_keys, room, EPSILONS)
preferences = policy_program(table_keys, room, RATES)
sampled = numpy(jax.nn.softmax(numpy(room.features) @ numpy(preferences), -1))
reached = {
    "Q-learning, greedy": exact_return(room, greedy(action_values, room)),
    "Q-learning, ε = 0.1": exact_return(room, 0.9 * greedy(action_values, room) + 0.1 / 4),
    "A2C, sampled": exact_return(room, sampled),
    "A2C, most probable": exact_return(room, greedy(preferences, room)),
}
print(f"J of {TABLE_SEEDS} seeds after {TABLE_STEPS:,} steps")
for name, x in reached.items():
    print(f"{name:20s} interquartile mean {iqm(x):.3f}   from {x.min():.3f} to {x.max():.3f}")
    if "sampled" not in name:
        assert x.max() < J_deterministic + 1e-5
assert reached["A2C, sampled"].max() < J_stochastic
if not QUICK:
    assert reached["A2C, sampled"].min() > J_stochastic - 0.05
    assert abs(sampled[:, 1, RIGHT] - 0.5).max() < 0.15

figure, ax = plt.subplots(figsize=(8.5, 4), layout="constrained")
ax.plot(chance, J_turned, color="black", label="J, all else at its best")
ax.plot(sampled[:, 1, RIGHT], reached["A2C, sampled"], "o", color=ORANGE, label="A2C, sampled", alpha=0.7)
ax.plot(
    greedy(action_values, room)[:, 1, RIGHT], reached["Q-learning, greedy"], "s", color=BLUE, label="Q-learning, greedy", alpha=0.7
)  # fmt: skip
ax.plot(
    greedy(preferences, room)[:, 1, RIGHT], reached["A2C, most probable"], "x", color="black", label="A2C, most probable"
)  # fmt: skip
dress(ax, "Where states look alike", "probability of going right in a", "J, exact", "lower center")
plt.show()

# %% [markdown]
# It is the *sampling* that does it, not the name of the algorithm. A2C's own most probable action is a deterministic policy
# and does no better than any other. So a stochastic policy has to be evaluated as it was trained.
#
# ## 9.4 Continuous actions
# With a box of actions, $\max_a Q(s,a)$ is a search, and it is wanted at every step and for every sample of every target. A
# grid of $b$ points a dimension costs $b^D$ evaluations. An **actor** is that argmax, learned: a network μ that climbs
# $\nabla_a Q(s, \mu(s))$ on the states of the replay, and one evaluation afterwards.

# %%
print("evaluations of Q for one argmax, 17 points a dimension")
for name, size in (("Pendulum", 1), ("Hopper", 3), ("Walker", 6), ("Humanoid", 17)):
    print(f"{name:9s} D = {size:2d}   grid {17**size:.1e}   actor 1")

PENDULUM_SEEDS, TD3_STEPS = (1, 2_000) if QUICK else (3, 24_000)
PENDULUM_GAMMA = 0.95
pendulum, pendulum_params = pgjax.envs.make("Pendulum-v1")
pendulum_actor = networks.DeterministicActor((-2.0,), (2.0,), networks.MLP((64, 64), jax.nn.relu))
pendulum_critic = networks.ActionCritic((-2.0,), (2.0,), networks.MLP((64, 64), jax.nn.relu))
pendulum_td3 = td3.make(
    pendulum,
    pendulum_params,
    pendulum_actor,
    pendulum_critic,
    optax.adam(1e-3),
    optax.adam(1e-3),
    num_envs=4,
    num_steps=1,
    num_updates=125,
    num_gradient_steps=2,
    policy_delay=2,
    batch_size=128,
    capacity=TD3_STEPS,
    warmup_steps=1000,
    gamma=PENDULUM_GAMMA,
    tau=0.01,
)
td3_iterations = (TD3_STEPS - 1000) // 500
td3_state, td3_metrics, td3_seconds = train(pendulum_td3, PENDULUM_SEEDS, td3_iterations)
if not QUICK:
    last = curve(td3_metrics, 23)[:, -5:].mean(-1)
    print(f"TD3 on Pendulum: return at the end {said(last)}")
    assert last.min() > -300

# %% [markdown]
# Now the actor's action against the argmax over 401 actions of its *own* critic, on 2,000 states from the replay. The size of
# a miss depends on how much is at stake, so the value that is given away is divided by the range of $Q(s,\cdot)$. And the
# grids that cost less: how many points match the actor?

# %%
ACTIONS = jnp.linspace(-2.0, 2.0, 401)


@jax.jit
def compare(actor_params, critic_params, obs):
    """Actions of the actor and of the grid, values of all actions, and of the actor's."""
    chosen = pendulum_actor.apply(actor_params, obs)
    pairs = (
        jnp.broadcast_to(obs[:, None], (len(obs), 401, 3)),
        jnp.broadcast_to(ACTIONS[:, None], (len(obs), 401, 1)),
    )
    return (
        chosen[:, 0],
        pendulum_critic.apply(critic_params, pairs),
        pendulum_critic.apply(critic_params, (obs, chosen)),
    )


misses, shares, grids, at_peak = [], [], [], []
for seed in range(PENDULUM_SEEDS):
    learned, replay = jax.tree.map(lambda x, seed=seed: x[seed], (td3_state.learned, td3_state.replay))
    found = pgjax.replay.sample_replay(jax.random.key(5), replay, 300 if QUICK else 2000)
    first = jax.tree.map(lambda x: x[0], learned.critic_params)
    chosen, values, value = numpy(compare(learned.actor_params, first, found.obs))
    span = values.max(1) - values.min(1)
    beside = np.abs(numpy(ACTIONS)[None] - chosen[:, None]) < 0.2
    at_peak.append(value > np.where(beside, values, -np.inf).max(1) - 0.01 * span)
    misses.append(np.abs(chosen - numpy(ACTIONS)[values.argmax(1)]) / 4.0)
    shares.append((values.max(1) - value) / span)
    grids.append(
        [((values.max(1) - values[:, :: 400 // (b - 1)].max(1)) / span).mean() for b in (2, 3, 5, 9, 17)]
    )
misses, shares, grids, at_peak = np.array(misses), np.array(shares), np.mean(grids, 0), np.array(at_peak)
far_off = misses > 0.25
print(
    f"actor and argmax apart, of the range of actions: median {np.median(misses):.3f}, nine of ten below {np.quantile(misses, 0.9):.3f}"
)
print(
    f"value given away, of the range of Q(s, ·): mean {shares.mean():.4f}, nine of ten below {np.quantile(shares, 0.9):.4f}"
)
print(
    "the same for grids of", ", ".join(f"{b}: {g:.4f}" for b, g in zip((2, 3, 5, 9, 17), grids, strict=True))
)
print(
    f"more than a quarter of the range apart: {far_off.mean():.3f} of the states;"
    f" of these, at a local maximum of Q: {at_peak[far_off].mean():.2f}"
)
if not QUICK:
    assert np.median(misses) < 0.2
    assert shares.mean() < 0.2

angles = np.linspace(-np.pi, np.pi, 181)
figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
for ax, speed in zip(axes[:2], (0.0, 3.0), strict=True):
    line = np.stack([np.cos(angles), np.sin(angles), np.full_like(angles, speed)], 1).astype(np.float32)
    chosen, values, _ = numpy(compare(learned.actor_params, first, line))
    height = (values - values.min(1, keepdims=True)) / (values.max(1) - values.min(1))[:, None]
    mesh = ax.pcolormesh(angles, numpy(ACTIONS), height.T, cmap="Greys", shading="auto", rasterized=True)
    ax.plot(
        angles, numpy(ACTIONS)[values.argmax(1)], ".", color=BLUE, ms=4, label="argmax of Q over 401 actions"
    )
    ax.plot(angles, chosen, color=ORANGE, lw=2, label="the actor")
    dress(
        ax,
        f"Q(s, a) at speed {speed:g}",
        "angle from upright",
        "action, torque",
        "lower center",
        ylim=(-2.9, 2.1),
    )
figure.colorbar(mesh, ax=axes[:2], label="(Q − min) / (max − min), for each angle")
axes[2].hist(shares.ravel(), bins=np.linspace(0, 0.3, 61), color=ORANGE, label="actor, each state")
for b, g in zip((2, 3, 5, 9), grids[:4], strict=True):
    axes[2].axvline(g, color=BLUE, ls=":", label="grids of 2, 3, 5, 9: mean" if b == 2 else None)
dress(axes[2], "What the actor gives away", "share of the range of Q(s, ·)", "states", yscale="log")
plt.show()

# %% [markdown]
# The actor follows the argmax where it is smooth. Where the argmax jumps, because pushing left and pushing right are
# about as good, the network draws a steep line through, and it can be far off: on another, lower peak, or on a slope. An
# actor is a *local* search, shared by all states. And in one dimension, on a problem whose best actions are mostly the
# extreme ones, it saves nothing: a grid of three points gives away no more. The price of the grid comes with D.
#
# ## 9.5 How smoothly a policy follows an update
# Two actions whose values tie almost: any small change of $Q$ can exchange them. The greedy policy then changes
# altogether, a total variation of 1, and there is no step small enough to rule it out. A softmax policy moves by no more
# than a multiple of the step. Change the logits by Δ, with range $R = \max\Delta - \min\Delta$:
#
# $$\mathrm{TV}(\pi, \pi') \le \tfrac14 R \le \tfrac12 \lVert\Delta\rVert_\infty$$
#
# In one line: along $\pi_t \propto \pi e^{t\Delta}$ we have $\dot\pi_t(a) = \pi_t(a)(\Delta_a - \mathbb{E}_{\pi_t}\Delta)$, so
# TV is at most ½ of the mean absolute deviation of Δ, and that is at most $R/2$ (half of it when the mass is split between
# the two ends). With logits $Q/T$ the bound is $R/4T$: it is void as T → 0, where softmax becomes greedy.

# %%
STEP_SIZES = np.geomspace(1e-3, 2.0, 60)


def total_variation(logits, change, policy):
    return 0.5 * np.abs(policy(logits + change) - policy(logits)).sum(-1)


def softmax(x):
    return np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)


def one_hot_greedy(x):
    return np.eye(x.shape[-1])[x.argmax(-1)]


rng = np.random.default_rng(2)
worst = 0.0
for size, num_actions in itertools.product((0.01, 0.1, 1.0, 3.0), (2, 3, 10)):
    logits = rng.normal(size=(20_000, num_actions)) * rng.exponential(2.0, (20_000, 1))
    change = rng.normal(size=(20_000, num_actions)) * size
    moved = total_variation(logits, change, softmax)
    worst = max(worst, (moved / (0.25 * (change.max(-1) - change.min(-1)))).max())
    assert (moved <= 0.25 * (change.max(-1) - change.min(-1)) + 1e-12).all()
    assert (moved <= 0.5 * np.abs(change).max(-1) + 1e-12).all()
print(f"of 240,000 random changes none breaks the bound; the nearest has {worst:.4f} of it")
tie = np.array([0.02, 0.0])  # a tie but for 0.02
exchange = STEP_SIZES[:, None] * np.array([-1.0, 1.0])
jump = total_variation(tie, exchange, one_hot_greedy)
glide = {T: total_variation(tie / T, exchange / T, softmax) for T in (1.0, 0.1)}
assert set(jump) == {0.0, 1.0}
assert (jump == (STEP_SIZES > 0.01)).all()
assert (glide[1.0] <= 0.5 * STEP_SIZES + 1e-12).all()

# %% [markdown]
# In training, from the runs of 9.2. For a greedy policy the mean total variation *is* the share of states whose action
# changed. DQN's iteration is 100 gradient steps on 1,000 environment steps, PPO's is 16 on 1,024. DQN's rate is constant
# and PPO's falls, so we look at the first half of the run, where it is still above half.

# %%
halves = {
    name: {k: metrics[k] for k in ("moved", "most_moved", "flipped")}
    for name, (_, metrics, _) in cart_runs.items()
}
print(
    "per iteration, first half      mean TV                    most moved state      share whose likeliest action changed"
)
for name, x in halves.items():
    half = {k: v[:, : v.shape[1] // 2].mean(1) for k, v in x.items()}
    values = (f"{iqm(v):.4f} [{interval(v)[0]:.4f}, {interval(v)[1]:.4f}]" for v in half.values())
    print(f"{name:28s}", *(f"{v:26s}" for v in values))
assert (halves["DQN"]["moved"] == halves["DQN"]["flipped"]).all()  # for a greedy policy they are one thing
if not QUICK:
    most = {
        name: np.median(x["most_moved"][:, : x["most_moved"].shape[1] // 2].mean(1))
        for name, x in halves.items()
    }
    assert most["DQN"] > 0.8
    assert most["PPO"] < 0.4

figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
axes[0].step(STEP_SIZES, jump, color=BLUE, where="post", label="greedy")
axes[0].plot(STEP_SIZES, glide[1.0], color=ORANGE, label="softmax, T = 1")
axes[0].plot(STEP_SIZES, glide[0.1], color="tan", label="softmax, T = 0.1")
axes[0].plot(STEP_SIZES, 0.5 * STEP_SIZES, "k:", label="½ ‖Δ‖∞, the bound at T = 1")
dress(
    axes[0], "Two actions, 0.02 apart", "step size ‖Δ‖∞", "total variation", xscale="log", ylim=(-0.03, 1.05)
)
for (name, x), c in zip(halves.items(), (BLUE, ORANGE), strict=True):
    along = np.linspace(0, CART_STEPS, x["moved"].shape[1])
    label = "DQN, share of states whose action changed" if name == "DQN" else "PPO, mean total variation"
    axes[1].plot(along, iqm(x["moved"]), color=c, label=label)
    if name == "PPO":
        axes[1].plot(along, iqm(x["most_moved"]), color=c, ls=":", label="PPO, the state that moved most")
dress(
    axes[1],
    "One iteration on CartPole, 512 fixed states",
    "environment steps",
    "total variation",
    yscale="log",
)
plt.show()

# %% [markdown]
# DQN's policy moves more, on the mean by up to twice as much in the first half. What differs most is how the change is
# spread: DQN leaves nearly all states alone and turns a few upside down, PPO moves all of them a little. PPO's *most
# probable* action flips as well, in one state of some fifty, where DQN's does in one of thirty to forty: it is the
# randomness that is smooth, not the algorithm. With its rate PPO comes to rest; DQN does not.
#
# ## 9.6 Exploration
# A row of eight cells, terminal at both ends. The start is next to the left end, which pays little, `near`. The right end
# pays 1, six moves away.
#
# ```
#   ┌──────┬───┬───┬───┬───┬───┬───┬───┐
#   │ near │ S │   │   │   │   │   │ 1 │
#   └──────┴───┴───┴───┴───┴───┴───┴───┘
# ```
#
# With γ = 0.9 the far end is worth $0.9^5 = 0.59$ and is the better optimum for both values of `near` that we try, 0.1 and
# 0.3. All methods get the same number of environment steps. Counted are the seeds whose final policy, greedy or most
# probable, walks to the far end: its exact $J$ is the optimum. The interval is Wilson's, 95 %. The start, the two
# rewards and the nine settings were picked from a sweep of a few dozen, to show cases of both kinds.

# %%
NEAR = (0.1, 0.3)
rows = [seen_as(tabular.grid_mdp(["XS.....G"], GAMMA, pit_reward=near), np.arange(8)) for near in NEAR]
CANDIDATES = {
    "ε = 0.1": {"epsilon_start": 0.1, "epsilon": 0.1, "level": 0.0},
    "ε = 0.3": {"epsilon_start": 0.3, "epsilon": 0.3, "level": 0.0},
    "ε from 1 to 0.1": {"epsilon_start": 1.0, "epsilon": 0.1, "level": 0.0},
    "ε = 0.1, Q starts at 1": {"epsilon_start": 0.1, "epsilon": 0.1, "level": 1.0},
    "no bonus, rate 0.3": {"rate": 0.3, "entropy": 0.0},
    "bonus 0.03, rate 0.3": {"rate": 0.3, "entropy": 0.03},
    "bonus 0.1, rate 0.3": {"rate": 0.3, "entropy": 0.1},
    "no bonus, rate 3": {"rate": 3.0, "entropy": 0.0},
    "bonus 0.1, rate 3": {"rate": 3.0, "entropy": 0.1},
}


def wilson(found, of, z=1.96):
    middle, width = found + z * z / 2, z * np.sqrt(found * (of - found) / of + z * z / 4)
    return (middle - width) / (of + z * z), (middle + width) / (of + z * z)


far = {}
print(f"seeds of {TABLE_SEEDS} that end at the far reward       near = 0.1          near = 0.3")
for name, settings in CANDIDATES.items():
    by_values = "level" in settings
    run = values_program if by_values else policy_program
    counts = []
    for mdp in rows:
        final = greedy(run(table_keys, mdp, settings), mdp)
        best = float(tabular.optimal_value(mdp) @ mdp.initial)
        assert np.isclose(best, GAMMA**5, atol=1e-5)
        counts.append(int((numpy(exact_return(mdp, final)) > 0.99 * best).sum()))
    far[name] = counts
    ends = ["{:3d}   [{:.2f}, {:.2f}]".format(c, *wilson(c, TABLE_SEEDS)) for c in counts]
    print(f"{'Q-learning' if by_values else 'A2C':10s} {name:30s}", *ends, sep="   ")
if not QUICK:
    assert far["ε = 0.1"][0] <= 4
    assert far["no bonus, rate 0.3"][0] >= 14
    assert far["ε from 1 to 0.1"][1] >= 14
    assert far["no bonus, rate 0.3"][1] <= 2
    assert far["bonus 0.1, rate 0.3"][1] >= 13

figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", sharey=True)
for i, (ax, near) in enumerate(zip(axes, NEAR, strict=True)):
    counts = np.array([c[i] for c in far.values()])
    low, high = wilson(counts, TABLE_SEEDS)
    colors = [BLUE if "level" in s else ORANGE for s in CANDIDATES.values()]
    share = counts / TABLE_SEEDS
    ax.barh(range(len(far)), share, color=colors, alpha=0.8)
    errors = np.maximum([share - low, high - share], 0)
    ax.errorbar(share, range(len(far)), xerr=errors, fmt="none", ecolor="black", capsize=3)
    names = [("Q-learning, " if "level" in s else "A2C, ") + n for n, s in CANDIDATES.items()]
    ax.set_yticks(range(len(far)), names)
    dress(
        ax,
        f"near reward {near:g}",
        f"share of {TABLE_SEEDS} seeds at the far reward",
        legend=None,
        xlim=(0, 1.02),
    )
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# What decides is not value or policy, but how long the beginning stays random and how much it is believed:
#
# - **ε-greedy with a small ε** walks to the near end, finds it good, and then needs a run of luck to leave it. A softmax
#   policy starts uniform, stays so for a while, and so gets there: on the left, A2C escapes where ε-greedy does not.
# - **It is the other way round** on the right. The near reward is larger, and A2C without a bonus drifts towards it
#   before it has seen the far end often enough. Q-learning with an ε that starts at 1 has seen both, remembers, and takes
#   the better one. It learns from any behaviour, so its exploration can be as wild as one likes.
# - **Optimism** needs no randomness: with values that start too high, what was not tried looks best.
# - **The entropy bonus** must fit the rewards. A moderate one saves A2C on the right; with a step size so large that the
#   policy commits at once, no bonus does.
#
# ## 9.7 Environment steps against seconds
# Off-policy methods can use a transition many times, on-policy ones a few times and then throw it away. So the first may need
# fewer steps of the environment, and do more arithmetic for each. Which is cheaper depends on what a step costs. Here it
# costs almost nothing. The seconds are of *this machine* and of the compiled program with all seeds side by side, divided by their
# number; compiling is not in them. PPO on Pendulum gets more steps, as it needs them.

# %%
PENDULUM_PPO_STEPS = 4_096 if QUICK else 163_840
pendulum_network = networks.ActorCritic(
    networks.GaussianActor(1, networks.MLP((64, 64))), networks.Critic(networks.MLP((64, 64)))
)
pendulum_iterations = PENDULUM_PPO_STEPS // 2048
pendulum_runs = {"TD3": (td3_metrics, td3_seconds)}
if not QUICK:
    pendulum_ppo = ppo.make(
        pendulum,
        pendulum_params,
        pendulum_network,
        optax.chain(
            optax.clip_by_global_norm(0.5),
            optax.adam(optax.linear_schedule(1e-3, 0.0, pendulum_iterations * 160), eps=1e-5),
        ),
        num_envs=8,
        num_steps=256,
        num_epochs=10,
        num_minibatches=16,
        gamma=PENDULUM_GAMMA,
        entropy_coef=0.0,
        normalize_obs=True,
        normalize_reward=True,
    )
    pendulum_runs["PPO"] = train(pendulum_ppo, PENDULUM_SEEDS, pendulum_iterations)[1:]

GOALS = {"CartPole": 300.0, "Pendulum": -250.0}
pictures = {
    "CartPole": {name: (metrics, seconds) for name, (_, metrics, seconds) in cart_runs.items()},
    "Pendulum": pendulum_runs,
}
figure, axes = plt.subplots(2, 2, figsize=(12, 7), layout="constrained", sharey="row")
print("                 µs per step    steps to the goal    seconds to the goal")
for row, (problem, runs) in zip(axes, pictures.items(), strict=True):
    seeds = len(next(iter(runs.values()))[0]["episodes"])
    for name, (metrics, seconds) in runs.items():
        num = max(1, min(20, metrics["episodes"].shape[1] // 2))
        points = curve(metrics, num)
        steps = metrics["env_steps"][0].sum()
        x = (np.arange(num) + 1) / num
        reached = np.flatnonzero(iqm(points) >= GOALS[problem])
        at = x[reached[0]] if len(reached) else np.nan
        cost = seconds / seeds
        print(f"{problem:9s} {name:4s} {1e6 * cost / steps:15.1f} {at * steps:20,.0f} {at * cost:22.2f}")
        color = ORANGE if name == "PPO" else BLUE
        for ax, scale in zip(row, (steps, cost), strict=True):
            draw(ax, x * scale, points, color, name)
    for ax, label in zip(row, ("environment steps", "seconds per seed, this machine"), strict=True):
        ax.axhline(GOALS[problem], color="grey", lw=0.8, ls=":")
        dress(ax, f"{problem}, {seeds} seeds", label, "return", "lower right")
plt.show()
if not QUICK:
    td3_at, ppo_at = (
        np.flatnonzero(iqm(curve(m, 20)) >= GOALS["Pendulum"])[0] / 20 * m["env_steps"][0].sum()
        for m, _ in pendulum_runs.values()
    )
    assert td3_at < ppo_at

# %% [markdown]
# On Pendulum TD3, with a gradient step for every two steps of four environments, needs less than a third of PPO's steps
# and several times as long for each; in seconds PPO is first. On CartPole DQN is behind in both: it learns once for ten steps,
# and what limits it is not the data. Replay alone makes no method sample-efficient.
#
# ## 9.8 Asynchrony
# A3C's workers copy the parameters, act, and apply their gradient to parameters that others have moved in the meantime. The
# library makes that reproducible: `delay` is the number of updates by others between a worker's copy and its own
# update. With a delay of 0 it is A2C. The correction takes the gradient at the shared parameters instead, and weights by
# V-trace for the copy having acted (Espeholt et al. 2018).
#
# `delay` and the learning rate are traced, so one program does the whole sweep, and another one the corrected sweep. Each worker has
# 8 environments and windows of 8 steps. The measure is the mean return of the episodes of the whole run. We take two rates: a
# small one, and a large one, at which the policy moves far within a delay. It was taken because delay matters there; without
# delay it learns faster than the small one.

# %%
A3C_SEEDS, A3C_ITERATIONS = (2, 2) if QUICK else (10, 50)
DELAYS = (0, 31) if QUICK else (0, 1, 3, 7, 15, 31)
A3C_RATES = (0.01,) if QUICK else (0.002, 0.01)
a3c_keys = jax.random.split(jax.random.key(3), A3C_SEEDS)
small_network = networks.ActorCritic(
    networks.CategoricalActor(2, networks.MLP((32,))), networks.Critic(networks.MLP((32,)))
)


def asynchronous(corrected):
    def run(keys, delay, rate):
        algorithm = a3c.make(
            cart,
            cart_params,
            small_network,
            optax.chain(
                optax.clip_by_global_norm(0.5), optax.rmsprop(rate, decay=0.99, eps=1e-5, eps_in_sqrt=False)
            ),
            num_workers=32,
            num_envs=8,
            num_steps=8,
            num_updates=32,
            lambda_=0.95,
            delay=delay,
            corrected=corrected,
        )
        return pgjax.train(keys, algorithm, A3C_ITERATIONS)[1]

    return program(run, a3c_keys, 0, 0.01)


delayed, entropies = {}, {}
for corrected in (False,) if QUICK else (False, True):
    run = asynchronous(corrected)
    for rate, delay in itertools.product(A3C_RATES, DELAYS):
        metrics = numpy(run(a3c_keys, delay, rate))
        assert abs(metrics["delay"][:, -1] - delay).max() < 1e-4
        delayed[corrected, rate, delay] = curve(metrics, 1)[:, 0]
        entropies[corrected, rate, delay] = metrics["entropy"][:, A3C_ITERATIONS // 2 :].mean()
num_steps = A3C_ITERATIONS * 32 * 64
print(f"mean return over {num_steps:,} steps, {A3C_SEEDS} seeds")
print(
    " rate   delay    plain                      corrected by V-trace       entropy, second half: plain, corrected"
)
for rate, delay in itertools.product(A3C_RATES, DELAYS):
    both = [(corrected, rate, delay) for corrected in (False, True) if (corrected, rate, delay) in delayed]
    ends = (f"{entropies[which]:8.3f}" for which in both)
    print(f"{rate:5g} {delay:7d}   ", *(f"{said(delayed[which]):26s}" for which in both), *ends)
if not QUICK:
    for corrected in (False, True):
        at_zero, at_most = (delayed[corrected, 0.01, d] for d in (0, 31))
        assert interval(at_most)[1] < interval(at_zero)[0]

figure, axes = plt.subplots(
    1, len(A3C_RATES), figsize=(11, 4), layout="constrained", sharey=True, squeeze=False
)
for ax, rate in zip(axes[0], A3C_RATES, strict=True):
    for corrected, c, label in ((False, ORANGE, "plain"), (True, "tab:green", "corrected by V-trace")):
        if (corrected, rate, 0) in delayed:
            runs = np.stack([delayed[corrected, rate, d] for d in DELAYS], 1)
            draw(ax, np.array(DELAYS), runs, c, label, marker="o")
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xticks(DELAYS, [str(d) for d in DELAYS])
    dress(
        ax, f"learning rate {rate:g}, {A3C_SEEDS} seeds", "delay, updates by others", "mean return of the run"
    )
plt.show()

# %% [markdown]
# At the small rate delays of up to 15 do not show; at the large one they cost the more the longer they are. What counts is
# how far the policy moves within a delay, and the rate decides that. The workers differ in number too: with delay d only d + 1
# of them take part.
#
# At the large rate V-trace did not repair it, it made it worse. It removes the bias of old data, but its ratios are cut at
# 1, and an action that the shared policy has nearly given up has a ratio near 0: the samples that could bring it back no
# longer count. The entropies fit that, falling faster with the correction; they do not prove it. Where a policy moves that
# far in a delay, a smaller rate is the better remedy.
#
# ## Value or policy: when which
#
# | when | then | measured in |
# |---|---|---|
# | states look alike, or being predictable costs | a stochastic policy, and play it by sampling | 9.3 |
# | actions are continuous and many-dimensional | an actor beside the critic; in one dimension a grid will do | 9.4 |
# | the behaviour must not jump from one update to the next | a stochastic policy in short steps; its argmax jumps too | 9.5 |
# | the worth of single actions is wanted, or data of others is to be used | values: SARSA's, Q-learning's; they tend to promise too much | 9.1, 9.2 |
# | steps of the environment are dear | off-policy from replay, with many gradient steps for each | 9.7, Pendulum |
# | steps are cheap and seconds count | on-policy, many environments | 9.7 |
# | a small reward lies near and a large one far | either, if the beginning is random for long enough; off-policy can explore as it likes | 9.6 |
# | many workers without waiting | either the delay is short or the rate is small | 9.8 |
#
# Modern methods stand on both sides. SAC learns values from replay *and* keeps a stochastic policy; PPO moves a policy *and*
# learns a value. The question is less which of the two to learn than which one acts, on whose data, and how far it may move.
#
# Further reading: Silver et al. 2014, Deterministic policy gradient algorithms; Mnih et al. 2015, Human-level control through
# deep reinforcement learning; Lillicrap et al. 2016, Continuous control with deep reinforcement learning; Fujimoto et al.
# 2018, Addressing function approximation error in actor-critic methods; Haarnoja et al. 2018, Soft actor-critic algorithms and
# applications; van Hasselt et al. 2016, Deep reinforcement learning with double Q-learning; van Seijen et al. 2009, A
# theoretical and empirical analysis of expected SARSA; Schulman et al. 2017, Proximal policy optimization algorithms; Mnih et
# al. 2016, Asynchronous methods for deep reinforcement learning; Espeholt et al. 2018, IMPALA; Agarwal et al. 2021, Deep
# reinforcement learning at the edge of the statistical precipice.
