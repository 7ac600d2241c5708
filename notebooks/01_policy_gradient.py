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
# # The policy gradient, step by step
#
# How does one differentiate an expected return, when the policy stands in the *probabilities* and not in the
# returns? This notebook derives the answer in seven steps. Each equation is followed by the code that is that
# equation, and by a check that holds it. Most checks are exact: the problem is so small that an expectation over
# trajectories is a finite sum, in float64.
#
# | step | |
# |---|---|
# | 1 | the gradient of the expected return |
# | 2 | the likelihood-ratio trick |
# | 3 | the probability of a trajectory: the dynamics drop out |
# | 4 | Monte Carlo, and the REINFORCE loop |
# | 5 | reward-to-go |
# | 6 | baselines, and the policy gradient theorem |
# | 7 | actor-critic |
# | 8 | the natural gradient: notebook `04_natural_gradient` |
# | 9 | modern deep reinforcement learning: notebook `05_value_or_policy` |

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import pgjax
from pgjax import tabular
from pgjax.distributions import Categorical

jax.config.update("jax_enable_x64", True)
QUICK = os.environ.get("PGJAX_NOTEBOOK_QUICK") == "1"
plt.rcParams.update({"font.size": 10, "figure.dpi": 110})


def numpy(tree):
    """NumPy arrays: what is plain arithmetic from here on needs no compilation."""
    return jax.tree.map(np.asarray, tree)


def check(what, actual, desired, tolerance):
    """Print the largest difference and hold it to the tolerance."""
    difference = np.abs(np.asarray(actual) - np.asarray(desired)).max()
    print(f"{what:66s} largest difference {difference:.1e}   tolerance {tolerance:.0e}")
    assert difference <= tolerance, what


# %% [markdown]
# ## A problem to work on
# A skier comes down a slope in four moves. From cell $(i, j)$, row $i$ and place $j$ in it, action 0 steers to the left
# gate below, action 1 to the right one; one time in five the ski slips to the other cell. The reward is that of the
# gate that was steered at. After the fourth move the run is over. Going left pays at once. The best gate is at the
# bottom right, behind a penalty, and worth it.

# %%
GATES = [[1.0, 0.0], [1.0, 0.0, -1.0], [0.0, 1.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0, 8.0]]
ROWS = len(GATES)
ROW = np.array([i for i in range(ROWS) for _ in range(i + 1)] + [ROWS])  # of every state, the finish last
PLACE = np.array([j for i in range(ROWS) for j in range(i + 1)] + [0])
FINISH = len(ROW) - 1


def slope(slip):
    transition, reward = np.zeros((FINISH + 1, 2, FINISH + 1)), np.zeros((FINISH + 1, 2))
    for s in range(FINISH):
        below = [FINISH if ROW[s] + 1 == ROWS else s + ROW[s] + 1 + a for a in (0, 1)]
        for a in (0, 1):
            reward[s, a] = GATES[ROW[s]][PLACE[s] + a]
            transition[s, a, below[a]] += 1 - slip
            transition[s, a, below[1 - a]] += slip
    start, finish = np.eye(FINISH + 1)[0], np.arange(FINISH + 1) == FINISH
    return tabular.TabularMDP(transition, reward, start, gamma=0.9, terminal=finish)


mdp = slope(slip=0.2)
print(mdp)

# %% [markdown]
# The policy is the softmax of a table: observations are one-hot, so $\theta$ holds a number for every state and action,
#
# $$\pi_\theta(a \mid s) = \frac{e^{\theta_{s,a}}}{\sum_b e^{\theta_{s,b}}}.$$


# %%
def softmax(theta, obs):
    return Categorical(obs @ theta)


rng = np.random.default_rng(0)
theta = 0.5 * rng.normal(size=mdp.reward.shape)
policy = numpy(tabular.policy_matrix(mdp, softmax, theta))
best_policy, best_value, _ = tabular.policy_iteration(mdp)
BEST = float(best_value[0])  # every run starts in state 0


def draw_slope(ax, policy, title):
    for s in range(FINISH):
        x, y = PLACE[s] - ROW[s] / 2, -ROW[s]
        for a in (0, 1):
            to = x + a - 0.5
            ax.plot([x, to], [y, y - 1], color="tab:blue", lw=0.3 + 5 * float(policy[s, a]), zorder=1)
            reward = GATES[ROW[s]][PLACE[s] + a]
            label = f"{reward:+.0f}".replace("-", "−") if reward else "0"
            ax.text(
                x + 0.62 * (to - x), y - 0.62, label, ha="center", va="center", fontsize=9, zorder=3
            ).set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
        ax.scatter(x, y, s=130, color="white", edgecolor="black", zorder=2)
    ax.plot([-2.2, 2.2], [-ROWS, -ROWS], color="black", lw=2)
    ax.text(0, -ROWS - 0.12, "finish", ha="center", va="top")
    ax.set(title=title, xlim=(-2.4, 2.4), ylim=(-ROWS - 0.5, 0.3))
    ax.set_axis_off()


figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
draw_slope(axes[0], policy, f"at θ: J = {float(tabular.objective(mdp, softmax, theta)):.2f}")
draw_slope(axes[1], best_policy, f"the best policy: J = {BEST:.2f}")
figure.suptitle("The slope: rewards at the gates, line width is the probability of steering there")
plt.show()

# %% [markdown]
# Every run of the skier is one of 128 trajectories $\tau = (s_0, a_0, r_0, s_1, \dots)$. With all of them at hand and
# the probability of each, an expectation is a sum and nothing is left to chance.

# %%
tau = tabular.enumerate_trajectories(mdp)
traj, valid = numpy(tabular.to_transitions(mdp, policy, tau))
probability = np.exp(tabular.trajectory_log_prob(mdp, policy, tau))
print("rewards [T, N]:", traj.reward.shape)
check("probabilities sum to one", probability.sum(), 1.0, 1e-12)

# %% [markdown]
# ## Step 1: the gradient of the expected return
# The return of a trajectory is $R(\tau) = \sum_t \gamma^t r_t$, and what we want to raise is its expectation
#
# $$J(\theta) = \mathbb{E}_{\tau \sim p_\theta}[R(\tau)] = \sum_\tau p_\theta(\tau)\, R(\tau).$$
#
# $\theta$ stands in the probabilities alone; the return of a given trajectory is a number. So the gradient is
#
# $$\nabla J(\theta) = \sum_\tau \nabla p_\theta(\tau)\, R(\tau).$$

# %%
discount = numpy(pgjax.time_discount(traj.terminated, traj.truncated, gamma=mdp.gamma))  # γ^t
total = numpy(pgjax.total_return(discount * traj.reward, valid))  # R(τ) at every step of τ


@jax.jit
def expected_return(theta):
    log_prob = tabular.trajectory_log_prob(mdp, tabular.policy_matrix(mdp, softmax, theta), tau)
    return (jnp.exp(log_prob) * total[0]).sum()


gradient = numpy(jax.grad(expected_return)(theta))

# %% [markdown]
# **Check.** The same $J$ comes from solving the linear system $V = r_\pi + \gamma P_\pi V$, and the same gradient from
# differentiating through that solution, and from central differences.

# %%
steps = 1e-5 * np.eye(theta.size).reshape(-1, *theta.shape)
differences = [(expected_return(theta + h) - expected_return(theta - h)) / 2e-5 for h in steps]
objective = tabular.objective(mdp, softmax, theta)
solved = jax.grad(lambda theta: tabular.objective(mdp, softmax, theta))(theta)

check("J: sum over trajectories = linear solve", expected_return(theta), objective, 1e-12)
check("∇J: sum over trajectories = derivative of the solve", gradient, solved, 1e-12)
check("∇J: sum over trajectories = central differences", gradient, np.reshape(differences, theta.shape), 1e-8)

# %% [markdown]
# ## Step 2: the likelihood-ratio trick
# $\sum_\tau \nabla p_\theta(\tau) R(\tau)$ is no expectation: nobody can draw from $\nabla p_\theta$. But the derivative of a
# logarithm is $\nabla \log p = \nabla p / p$, so that
#
# $$\nabla p_\theta(\tau) = p_\theta(\tau)\, \nabla \log p_\theta(\tau)
# \qquad\Longrightarrow\qquad
# \nabla J(\theta) = \mathbb{E}_{\tau \sim p_\theta}\big[\nabla \log p_\theta(\tau)\, R(\tau)\big].$$
#
# Now it is an expectation under the very distribution that acting draws from.


# %%
def log_probability(theta):
    return tabular.trajectory_log_prob(mdp, tabular.policy_matrix(mdp, softmax, theta), tau)


grad_log_p = numpy(jax.jit(jax.jacobian(log_probability))(theta))  # ∇ log p(τ): [N, S, A]
likelihood_ratio = np.einsum("n,nsa,n->sa", probability, grad_log_p, total[0])

# %% [markdown]
# **Check.** Term by term the trick is exact, and so is the sum. The expectation of $\nabla \log p$ itself is zero, because
# probabilities always sum to one: what raises one trajectory lowers the others.

# %%
grad_p = jax.jit(jax.jacobian(lambda theta: jnp.exp(log_probability(theta))))(theta)
check("∇p = p ∇ log p, for every trajectory", grad_p, probability[:, None, None] * grad_log_p, 1e-14)
check("E[∇ log p R] = ∇J", likelihood_ratio, gradient, 1e-12)
check("E[∇ log p] = 0", np.einsum("n,nsa->sa", probability, grad_log_p), 0.0, 1e-14)

# %% [markdown]
# ## Step 3: the probability of a trajectory
# A trajectory is a start, and then choices of the policy and answers of the world in turn:
#
# $$\log p_\theta(\tau) = \underbrace{\log \mu(s_0)}_{\text{start}}
# + \sum_t \underbrace{\log \pi_\theta(a_t \mid s_t)}_{\text{policy}}
# + \sum_t \underbrace{\log P(s_{t+1} \mid s_t, a_t)}_{\text{dynamics}}.$$
#
# Only the middle term knows $\theta$. Start and dynamics drop out of the gradient, known or not:
#
# $$\nabla \log p_\theta(\tau) = \sum_t \nabla \log \pi_\theta(a_t \mid s_t),
# \qquad
# \nabla J(\theta) = \mathbb{E}\Big[\sum_t \nabla \log \pi_\theta(a_t \mid s_t)\, R(\tau)\Big].$$
#
# `tabular.trajectory_log_prob` has all three terms; `pgjax.trajectory_log_prob` has the middle one and asks for a
# network and a trajectory only. `pgjax.trajectory_gradients` is the bracket, one gradient a trajectory.

# %%
without_dynamics = pgjax.trajectory_log_prob(softmax, theta, traj, valid)  # Σ_t log π
grad_without = jax.jit(jax.jacobian(lambda theta: pgjax.trajectory_log_prob(softmax, theta, traj, valid)))(
    theta
)


def expected(weight):
    """E[Σ_t ∇ log π(a_t|s_t) Ψ_t]: the exact mean of the estimator with weight Ψ."""
    return np.tensordot(probability, pgjax.trajectory_gradients(softmax, theta, traj, weight, valid), axes=1)


# %% [markdown]
# **Check.** The two log-probabilities differ, by the dynamics; their gradients do not, for any of the 128.

# %%
gap = np.abs(np.asarray(log_probability(theta)) - np.asarray(without_dynamics))
print(f"log p(τ) with and without the dynamics differ by {gap.min():.2f} to {gap.max():.2f}")
assert gap.min() > 0.5
check("∇ log p with the dynamics = without", grad_log_p, grad_without, 1e-14)
check("E[Σ ∇ log π R(τ)] = ∇J", expected(total), gradient, 1e-12)

# %% [markdown]
# ### A world that cannot be differentiated
# If the dynamics drop out, no derivative of them can be needed. So here is the same slope behind a step whose derivative
# raises an error. First, on a slope without slipping, all $2^4$ sequences of actions are played in it. They are all its
# trajectories, so the expected estimate is again a sum, and must be the exact gradient. Then many runs are drawn on the
# slippery slope, and their mean must be the exact gradient within its standard error.


# %%
class NotDifferentiableError(Exception):
    pass


class Opaque:
    """An environment that acts as the one inside it, and raises as soon as somebody differentiates its step."""

    def __init__(self, env):
        self.reset = env.reset

        @jax.custom_jvp
        def step(key, state, action):
            return env.step(key, state, jnp.asarray(action, int))

        @step.defjvp
        def raises(primals, tangents):
            raise NotDifferentiableError("this world has no derivative")

        self.step = lambda key, state, action, params: step(key, state, action)


firm = slope(slip=0.0)
sequences = (np.arange(2**ROWS)[:, None] >> np.arange(ROWS)) % 2  # [16, T]


def play(key, obs):
    """Column i plays the i-th sequence; the row says how far it has come."""
    action = jnp.asarray(sequences)[jnp.arange(len(sequences)), (obs @ ROW).astype(int)]
    return action, softmax(theta, obs).log_prob(action)


@jax.jit
def play_all():
    """The probability of every sequence of actions, and Σ_t ∇ log π R(τ) of it."""
    traj, valid = pgjax.rollout_episodes(
        jax.random.key(0), play, Opaque(firm), None, num_episodes=len(sequences), max_steps=ROWS
    )
    discount = pgjax.time_discount(traj.terminated, traj.truncated, gamma=mdp.gamma)
    weight = pgjax.total_return(discount * traj.reward, valid)
    log_prob = pgjax.trajectory_log_prob(softmax, theta, traj, valid)  # nothing else is random
    return jnp.exp(log_prob), pgjax.trajectory_gradients(softmax, theta, traj, weight, valid)


def sampled(key, env, theta, num_episodes):
    """Runs drawn with the policy at θ, and γ^t beside them."""

    def act(key, obs):
        return softmax(theta, obs).sample_and_log_prob(key)

    traj, valid = pgjax.rollout_episodes(key, act, env, None, num_episodes, max_steps=ROWS)
    return traj, valid, pgjax.time_discount(traj.terminated, traj.truncated, gamma=mdp.gamma)


LARGEST = 1024 if QUICK else 4096


@jax.jit
def estimates(batch):
    """Σ_t ∇ log π R(τ) of every run of a batch, drawn in the opaque world: [LARGEST, S, A]."""
    key = jax.random.fold_in(jax.random.key(1), batch)
    traj, valid, discount = sampled(key, Opaque(mdp), theta, LARGEST)
    weight = pgjax.total_return(discount * traj.reward, valid)
    return pgjax.trajectory_gradients(softmax, theta, traj, weight, valid)


played_probability, played = numpy(play_all())
drawn = np.concatenate([estimates(batch) for batch in range(16)])

# %% [markdown]
# **Check.** Differentiating the step raises. The expected estimate is exact all the same. The mean of the drawn runs lies
# within five standard errors of the exact gradient in all 20 parameters of the ten live states: a correct estimator fails
# this with probability below $20 \cdot 6 \cdot 10^{-7}$, about one in 80,000.

# %%
state = jax.jit(firm.reset)(jax.random.key(0))[1]
try:
    jax.grad(lambda action: Opaque(firm).step(jax.random.key(0), state, action, None)[2])(0.0)
except NotDifferentiableError as error:
    print("jax.grad of the step:", error)
else:
    raise AssertionError("the step was differentiated")

check("all sequences are played, probabilities sum to one", played_probability.sum(), 1.0, 1e-12)
exact_firm = tabular.policy_gradient(firm, softmax, theta)
check("opaque, firm: expected estimate = ∇J", np.tensordot(played_probability, played, 1), exact_firm, 1e-12)
standard_error = drawn.std(0) / np.sqrt(len(drawn))
deviation = np.abs(drawn.mean(0) - gradient)[:FINISH] / standard_error[:FINISH]
print(f"opaque, slippery: {len(drawn)} runs, farthest parameter {deviation.max():.1f} standard errors away")
assert deviation.max() < 5

# %% [markdown]
# ## Step 4: Monte Carlo, and the REINFORCE loop
# Real problems have too many trajectories for a sum. So draw $N$ of them and take the average:
#
# $$\hat g_N = \frac1N \sum_{i=1}^N \sum_t \nabla \log \pi_\theta(a_{i,t} \mid s_{i,t})\, R(\tau_i).$$
#
# The average is **unbiased by linearity**: the expectation of a sum is the sum of expectations, whatever $N$ is. It is
# **consistent by the law of large numbers**: $\hat g_N \to \nabla J$ as $N \to \infty$. And since the trajectories are
# independent, its mean squared error is the variance of one trajectory's estimate over $N$:
#
# $$\sqrt{\mathbb{E}\,\|\hat g_N - \nabla J\|^2} = \sqrt{\frac{\operatorname{tr} \Sigma}{N}},
# \qquad
# \operatorname{tr}\Sigma = \sum_\tau p_\theta(\tau)\, \|g_\tau\|^2 - \|\nabla J\|^2 .$$
#
# $\operatorname{tr}\Sigma$ is a sum over trajectories too: the prediction below is exact and has nothing fitted to it.


# %%
def variance(weight):
    """tr Σ of the estimator with weight Ψ, from one trajectory, exactly."""
    each = np.asarray(pgjax.trajectory_gradients(softmax, theta, traj, weight, valid))
    return (probability * (each**2).sum((1, 2))).sum() - (expected(weight) ** 2).sum()


sizes = 4 ** np.arange(6 if QUICK else 7)  # up to LARGEST
num_batches = 100 if QUICK else 400


def squared_errors(batch):
    """‖ĝ_N − ∇J‖² for every N; a smaller batch is the beginning of the largest."""
    each = np.asarray(estimates(batch)).reshape(LARGEST, -1)
    means = np.stack([each[:size].mean(0) for size in sizes])
    return ((means - gradient.reshape(-1)) ** 2).sum(1)


errors = np.stack([squared_errors(16 + batch) for batch in range(num_batches)])  # none of step 3 again
mean_squared = errors.mean(0)  # over batches, for every N
standard_error = errors.std(0) / np.sqrt(num_batches)
predicted = variance(total) / sizes
fitted_slope = np.polyfit(np.log(sizes), np.log(np.sqrt(mean_squared)), 1)[0]

# %% [markdown]
# **Check.** `pgjax.policy_gradient` is the average of the trajectories' gradients. At every $N$ the mean squared error is
# the predicted one within five standard errors, and on logarithmic axes its root falls with slope $-\tfrac12$.

# %%
average = pgjax.policy_gradient(softmax, theta, traj, total, valid)  # over columns, wherever they are from
each = numpy(pgjax.trajectory_gradients(softmax, theta, traj, total, valid))
check("policy_gradient = mean of trajectory_gradients", average, each.mean(0), 1e-12)
for size, measured, exact, spread in zip(sizes, mean_squared, predicted, standard_error, strict=True):
    print(f"N = {size:5d}   mean squared error {measured:9.5f} ± {spread:.5f}   tr Σ / N {exact:9.5f}")
    assert abs(measured - exact) < 5 * spread
print(f"fitted slope {fitted_slope:.3f}")
assert abs(fitted_slope + 0.5) < 0.03

figure, ax = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
ax.loglog(
    sizes,
    np.sqrt(predicted),
    color="tab:orange",
    lw=2,
    label=r"exact: $\sqrt{\mathrm{tr}\,\Sigma / N}$, slope −1/2",
)
ax.errorbar(
    sizes,
    np.sqrt(mean_squared),
    yerr=2 * standard_error / (2 * np.sqrt(mean_squared)),
    fmt="o",
    color="tab:blue",
    capsize=3,
    label=f"measured over {num_batches} batches (± 2 standard errors), slope −{abs(fitted_slope):.3f}",
)
ax.axhline(np.linalg.norm(gradient), color="gray", ls=":", label=r"length of the gradient, $\|\nabla J\|$")
ax.set(
    xlabel="N, trajectories in the average",
    ylabel=r"root mean squared error of $\hat g_N$",
    title="Four times the trajectories, half the error",
    ylim=(None, 3 * float(np.sqrt(predicted[0]))),
)
ax.legend(fontsize=8.5)
plt.show()

# %% [markdown]
# ### REINFORCE
# Follow the estimate uphill:
#
# $$\theta \leftarrow \theta + \alpha\, \hat g_N .$$
#
# The step size is $\alpha$. It is not $\gamma$, which discounts rewards and belongs to the problem. Optimizers descend, so
# optax gets minus the estimate. Every update draws $N = 64$ new trajectories, because $\hat g$ is an expectation under the
# *current* policy.

# %%
ALPHA, NUM_EPISODES = 0.5, 64
NUM_UPDATES, NUM_SEEDS = (1000, 2) if QUICK else (3000, 8)
optimizer = optax.sgd(learning_rate=ALPHA)


def reinforce(seed):
    """θ at the end, and the exact J before every update."""

    def update(carry, key):
        theta, opt_state = carry
        traj, valid, discount = sampled(key, mdp, theta, NUM_EPISODES)
        weight = pgjax.total_return(discount * traj.reward, valid)
        ascent = pgjax.policy_gradient(softmax, theta, traj, weight, valid)
        updates, opt_state = optimizer.update(-ascent, opt_state)
        return (optax.apply_updates(theta, updates), opt_state), tabular.objective(mdp, softmax, theta)

    keys = jax.random.split(jax.random.key(seed), NUM_UPDATES)
    (learned, _), curve = jax.lax.scan(update, (theta, optimizer.init(theta)), keys)
    return learned, curve


def exact_ascent(theta, _):
    step = ALPHA * tabular.policy_gradient(mdp, softmax, theta)
    return theta + step, tabular.objective(mdp, softmax, theta)


seeds = np.arange(NUM_SEEDS)
learned, curves = numpy(jax.lax.map(reinforce, seeds))
_, exact_curve = jax.lax.scan(exact_ascent, theta, None, NUM_UPDATES)

# %% [markdown]
# **Check.** The optimum is known, from policy iteration. All seeds end within 1 % of it (5 % in the quick mode, with a
# third of the updates). The curve is the *exact* objective of the policy as it stands, so what scatters in it is the
# learning, not the measurement.

# %%
shortfall = 1 - curves[:, -1] / BEST
print(f"start {curves[0, 0]:.3f}, optimum {BEST:.3f}, seeds end {shortfall.max():.2%} below it at most")
assert (shortfall > -1e-9).all()
assert shortfall.max() < (0.05 if QUICK else 0.01)

figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained", width_ratios=[1.6, 1])
updates = np.arange(1, NUM_UPDATES + 1)
for i, curve in enumerate(curves):
    axes[0].plot(
        updates,
        curve,
        color="tab:blue",
        lw=0.8,
        alpha=0.6,
        label="REINFORCE, one line a seed" if i == 0 else None,
    )
axes[0].plot(updates, exact_curve, color="black", lw=1.5, label="the exact gradient, same α")
axes[0].axhline(BEST, color="tab:green", ls="--", label=f"optimum, {BEST:.2f}")
axes[0].set(
    xlabel="number of the update (64 trajectories each)",
    ylabel="J(θ), exact",
    title="REINFORCE reaches the optimum",
    xscale="log",
)
axes[0].set_xlim(1, NUM_UPDATES)
axes[0].legend(fontsize=8.5, loc="lower right")
draw_slope(axes[1], tabular.policy_matrix(mdp, softmax, learned[0]), "what the first seed learned")
plt.show()

# %% [markdown]
# ## Step 5: reward-to-go
# $R(\tau)$ credits every action with every reward, the ones *before* it included. But what was paid before an action was
# taken does not depend on it. Given the past, the reward $r_k$ with $k < t$ is a number, and the score averages to zero:
#
# $$\mathbb{E}\big[\nabla \log \pi_\theta(a_t \mid s_t)\, r_k\big]
# = \mathbb{E}\Big[r_k\, \underbrace{\mathbb{E}\big[\nabla \log \pi_\theta(a_t \mid s_t) \,\big|\, s_0, a_0, \dots, s_t\big]}_{=\,0}\Big] = 0
# \qquad (k < t).$$
#
# So **reward-to-go drops the rewards before the action** and keeps the rest,
# $\sum_{k \ge t} \gamma^k r_k = \gamma^t G_t$ with $G_t = \sum_{k \ge t} \gamma^{k-t} r_k$:
#
# $$\nabla J(\theta) = \mathbb{E}\Big[\sum_t \gamma^t\, \nabla \log \pi_\theta(a_t \mid s_t)\, G_t\Big].$$
#
# The factor $\gamma^t$ belongs to the discounted objective. Most algorithms drop it; what they then follow is the subject
# of notebook `02_variance`.

# %%
to_go = numpy(pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=mdp.gamma))  # G_t
past = total - discount * to_go  # Σ_{k<t} γ^k r_k

scores = numpy(pgjax.score(softmax, theta, traj.obs, traj.action))  # [T, N, S, A]
credit = np.einsum("n,tnsa,kn->tksa", probability, scores, traj.reward)  # E[∇ log π(a_t|s_t) r_k]
credit_size = np.linalg.norm(credit, axis=(2, 3))

# %% [markdown]
# **Check.** Every pair of an action and an earlier reward averages to zero; the pairs with $k \ge t$ do not. The part
# that is dropped has expectation zero, the gradient stays what it was, and the variance of one trajectory falls.

# %%
before = np.tril(np.ones((ROWS, ROWS), bool), -1)  # k < t
check("E[∇ log π(a_t|s_t) r_k] = 0 for k < t", credit_size[before], 0.0, 1e-14)
print(f"smallest of the others: {credit_size[~before].min():.3f}")
assert credit_size[~before].min() > 1e-3
check("the dropped rewards contribute nothing on average", expected(past), 0.0, 1e-13)
check("E[Σ γ^t ∇ log π G_t] = ∇J", expected(discount * to_go), gradient, 1e-12)
print(
    f"variance of one trajectory: {variance(total):.2f} with R(τ), {variance(discount * to_go):.2f} with the reward-to-go"
)
assert variance(discount * to_go) < variance(total)

figure, ax = plt.subplots(figsize=(4.8, 3.6), layout="constrained")
image = ax.imshow(credit_size, cmap="Blues", vmin=0)
for t in range(ROWS):
    for k in range(ROWS):
        shade = "white" if credit_size[t, k] > 0.6 * credit_size.max() else "black"
        label = "0" if before[t, k] else f"{credit_size[t, k]:.2f}"
        ax.text(k, t, label, ha="center", va="center", color=shade)
ax.set(xlabel="k, time of the reward", ylabel="t, time of the action", xticks=range(ROWS), yticks=range(ROWS))
ax.set_title("An action owes nothing to earlier rewards", fontsize=11)
figure.colorbar(image, ax=ax, label=r"$\|\,\mathbb{E}[\nabla \log \pi(a_t|s_t)\, r_k]\,\|$")
plt.show()

# %% [markdown]
# ## Step 6: baselines, and the policy gradient theorem
# The same argument lets us subtract any function $b(s)$ of the state:
#
# $$\mathbb{E}_{a \sim \pi}\big[\nabla \log \pi_\theta(a \mid s)\, b(s)\big]
# = b(s) \sum_a \nabla \pi_\theta(a \mid s) = b(s)\, \nabla 1 = 0 .$$
#
# The mean of score × baseline is zero, so a baseline leaves the expectation alone and changes the variance only:
#
# $$\nabla J(\theta) = \mathbb{E}\Big[\sum_t \gamma^t\, \nabla \log \pi_\theta(a_t \mid s_t)\, \big(G_t - b(s_t)\big)\Big].$$
#
# The usual choice is $b = V$, the value. A function that looks at the *action* is no baseline, and does change the mean.

# %%
value = numpy(tabular.state_value(mdp, policy))  # V(s)
action_value = numpy(tabular.action_value(mdp, policy))  # Q(s, a)
advantage = numpy(tabular.advantage(mdp, policy))  # A(s, a) = Q(s, a) − V(s)

every_obs = np.repeat(np.asarray(mdp.observations)[:, None], mdp.num_actions, axis=1)  # [S, A, S]
every_action = np.tile(np.arange(mdp.num_actions), (mdp.num_states, 1))  # [S, A]
score = numpy(
    pgjax.score(softmax, theta, every_obs, every_action)
)  # ∇ log π(a|s) for all s and a: [S, A, S, A]
any_baseline = 10.0 * rng.normal(size=mdp.num_states)


def taken(table):
    """Q(s_t, a_t) along the trajectories, from a table [S, A]."""
    return np.take_along_axis(traj.obs @ table, traj.action[..., None], -1)[..., 0]


# %% [markdown]
# **Check.** In every state the mean over actions is zero, and so is the mean over trajectories, for a baseline drawn at
# random with a standard deviation of 10. What depends on the action does not vanish.

# %%
in_each_state = np.einsum("sa,sa...,s->s...", policy, score, any_baseline)
check("Σ_a π(a|s) ∇ log π(a|s) b(s) = 0 in every state", in_each_state, 0.0, 1e-13)
check("E[Σ γ^t ∇ log π b(s_t)] = 0", expected(discount * (traj.obs @ any_baseline)), 0.0, 1e-12)
with_random = discount * pgjax.subtract_baseline(to_go, traj.obs @ any_baseline, valid)
with_value = discount * pgjax.subtract_baseline(to_go, traj.obs @ value, valid)
check("E[Σ γ^t ∇ log π (G − b)] = ∇J, b at random", expected(with_random), gradient, 1e-12)
check("E[Σ γ^t ∇ log π (G − V)] = ∇J", expected(with_value), gradient, 1e-12)
not_a_baseline = np.linalg.norm(expected(discount * taken(action_value)))
print(f"‖E[Σ γ^t ∇ log π f(s_t, a_t)]‖ with f = Q, which looks at the action: {not_a_baseline:.3f}")
assert not_a_baseline > 0.1

# %% [markdown]
# ### The theorem
# Average $G_t$ over everything that comes after $(s_t, a_t)$ and it becomes $Q(s_t, a_t)$. Gather the visits of each state,
# $d(s) = \sum_t \gamma^t\, \Pr(s_t = s)$, and trajectories disappear:
#
# $$\nabla J(\theta) = \sum_s d(s) \sum_a \nabla \pi_\theta(a \mid s)\, Q(s, a)
# = \sum_s d(s) \sum_a \nabla \pi_\theta(a \mid s)\, A(s, a),$$
#
# the second because $V(s)$ is a baseline. $d$ and $Q$ depend on $\theta$ as well, yet neither is differentiated: that is
# the content of the theorem.


# %%
@jax.jit
def all_actions(psi):
    """Σ_s d(s) Σ_a ∇π(a|s) Ψ(s, a); a loss, so the gradient is minus its derivative."""
    visits = tabular.visitation(mdp, policy, normalized=False)  # d(s)

    def loss(theta):
        return (visits * pgjax.all_action_loss(softmax(theta, mdp.observations).probs, psi)).sum()

    return -jax.grad(loss)(theta)


# %% [markdown]
# **Check.** With $Q$ and with $A$ it is the exact gradient, summed over states as above or over trajectories as before.

# %%
check("Σ d Σ ∇π Q = ∇J", all_actions(action_value), gradient, 1e-12)
check("Σ d Σ ∇π A = ∇J", all_actions(advantage), gradient, 1e-12)
check("tabular.policy_gradient = ∇J", tabular.policy_gradient(mdp, softmax, theta), gradient, 1e-12)
check("E[Σ γ^t ∇ log π Q(s_t, a_t)] = ∇J", expected(discount * taken(action_value)), gradient, 1e-12)
check("E[Σ γ^t ∇ log π A(s_t, a_t)] = ∇J", expected(discount * taken(advantage)), gradient, 1e-12)

# %% [markdown]
# ### A factor that is easily lost
# Papers like to write the theorem as an expectation. A state can be drawn only from a distribution that sums to one, and
# $d$ does not. Where nothing terminates $\sum_s d(s) = \sum_t \gamma^t = 1/(1-\gamma)$, so **an expectation over the
# normalised $d^\pi$ carries a factor $1/(1-\gamma)$**:
#
# $$\nabla J(\theta) = \frac{1}{1-\gamma}\; \mathbb{E}_{s \sim d^\pi,\; a \sim \pi}\big[\nabla \log \pi_\theta(a \mid s)\, A(s, a)\big].$$
#
# Where episodes end and only states before the end are counted, as on the slope, the factor is the expected discounted
# length $\sum_s d(s)$ instead. Left out, the direction is right and the length is not: the step size has to make up for it.

# %%
endless = tabular.chain_mdp(11, gamma=0.9, slip=0.1, left_reward=0.2)  # as many states as the slope
endless_theta = rng.normal(size=endless.reward.shape)
endless_policy = tabular.policy_matrix(endless, softmax, endless_theta)
expectation = np.einsum(
    "s,sa,sa...,sa->...",
    tabular.visitation(endless, endless_policy, normalized=True),
    endless_policy,
    pgjax.score(softmax, endless_theta, every_obs, every_action),
    tabular.advantage(endless, endless_policy),
)

# %% [markdown]
# **Check.** On a problem without an end the factor is 10, for $\gamma = 0.9$. On the slope it is less.

# %%
endless_gradient = numpy(jax.grad(lambda theta: tabular.objective(endless, softmax, theta))(endless_theta))
ratio = np.linalg.norm(endless_gradient) / np.linalg.norm(expectation)
check("‖∇J‖ / ‖E‖ = 1 / (1 − γ)", ratio, 1 / (1 - 0.9), 1e-11)
check(
    "E over the normalised d, times 1/(1 − γ) = ∇J",
    expectation / (1 - 0.9),
    endless_gradient,
    1e-12,
)
length = numpy(tabular.visitation(mdp, policy, normalized=False)).sum()
check("slope: Σ d = expected discounted length", length, (1 - 0.9**ROWS) / (1 - 0.9), 1e-12)
print(f"factor without an end {ratio:.2f}, on the slope {length:.3f}")

# %% [markdown]
# ## Step 7: actor-critic
# $V$ is not known either, so learn it: a critic $\hat V$ beside the actor. It can serve in two ways, and they are not alike.
#
# **As a baseline**, $\Psi_t = G_t - \hat V(s_t)$. By step 6 any function of the state will do. The gradient stays unbiased
# however wrong the critic is; a poor critic costs variance.
#
# **To bootstrap**, $\Psi_t = \delta_t = r_t + \gamma \hat V(s_{t+1}) - \hat V(s_t)$. Now the critic stands for the rewards
# to come, and these depend on the action. With an error $e = \hat V - V$ the estimate is off by
#
# $$\mathbb{E}\Big[\sum_t \gamma^t\, \nabla \log \pi_\theta(a_t \mid s_t)\, \delta_t\Big] - \nabla J
# = \sum_s d(s) \sum_a \nabla \pi_\theta(a \mid s)\; \gamma \sum_{s'} P(s' \mid s, a)\, e(s'),$$
#
# which is zero for the exact critic, and for a wrong one in general is not. Between the two stands
# $\mathrm{GAE}(\lambda) = \sum_{k \ge 0} (\gamma\lambda)^k \delta_{t+k}$: at $\lambda = 0$ it is $\delta_t$, at $\lambda = 1$ it is
# $G_t - \hat V(s_t)$.

# %%
error = np.where(mdp.terminal, 0.0, rng.normal(size=mdp.num_states))
critics = {"exact V": value, "wrong V": value + error}


def advantages(critic, lambda_):
    """γ^t GAE(λ) along every trajectory."""
    ends = traj.terminated, traj.truncated
    estimate = pgjax.gae(
        traj.reward, traj.obs @ critic, traj.next_obs @ critic, *ends, gamma=mdp.gamma, lambda_=lambda_
    )
    return discount * numpy(estimate)


def bootstrapped(critic):
    """γ^t δ_t along every trajectory."""
    value, next_value = traj.obs @ critic, traj.next_obs @ critic
    return discount * numpy(pgjax.td_error(traj.reward, value, next_value, traj.terminated, gamma=mdp.gamma))


as_baseline = discount * pgjax.subtract_baseline(to_go, traj.obs @ critics["wrong V"], valid)
predicted_bias = all_actions(0.9 * np.einsum("sat,t->sa", mdp.transition, error))

# %% [markdown]
# **Check.** All four cases, exactly. The bias of bootstrapping from the wrong critic is the one that the formula says.

# %%
check("wrong critic as a baseline: unbiased", expected(as_baseline), gradient, 1e-12)
check("exact critic, bootstrapped: unbiased", expected(bootstrapped(critics["exact V"])), gradient, 1e-12)
bias = expected(bootstrapped(critics["wrong V"])) - gradient
check("wrong critic, bootstrapped: biased by the formula", bias, predicted_bias, 1e-12)
print(f"    that is ‖bias‖ = {np.linalg.norm(bias):.3f}, beside ‖∇J‖ = {np.linalg.norm(gradient):.3f}")
assert np.linalg.norm(bias) > 0.1
for name, critic in critics.items():
    check(f"GAE(0) is the TD error, {name}", advantages(critic, 0.0), bootstrapped(critic), 1e-12)
    unbiased = discount * pgjax.subtract_baseline(to_go, traj.obs @ critic, valid)
    check(f"GAE(1) is the return minus the baseline, {name}", advantages(critic, 1.0), unbiased, 1e-12)

lambdas = np.linspace(0.0, 1.0, 21)
sweep = {
    name: np.array(
        [
            [np.linalg.norm(expected(w) - gradient), np.sqrt(variance(w))]
            for w in (advantages(c, x) for x in lambdas)
        ]
    )
    for name, c in critics.items()
}
check("exact critic: no bias at any λ", sweep["exact V"][:, 0], 0.0, 1e-12)
check("wrong critic: no bias at λ = 1", sweep["wrong V"][-1, 0], 0.0, 1e-12)
assert (sweep["wrong V"][:-1, 0] > 1e-3).all()

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharex=True)
for (name, figures), color in zip(sweep.items(), ["tab:green", "tab:red"], strict=True):
    axes[0].plot(lambdas, figures[:, 0], "o-", ms=3, color=color, label=name)
    axes[1].plot(lambdas, figures[:, 1], "o-", ms=3, color=color, label=name)
axes[0].axhline(
    np.linalg.norm(gradient), color="gray", ls=":", label=r"length of the gradient, $\|\nabla J\|$"
)
axes[0].set(
    xlabel="λ",
    ylabel="‖bias‖, exact",
    title="Bias: bootstrapping pays for a wrong critic",
    ylim=(-0.03, None),
)
axes[1].set(
    xlabel="λ",
    ylabel="standard deviation, exact",
    title="Noise of one trajectory: what it buys",
    ylim=(0, None),
)
for ax in axes:
    ax.legend(fontsize=8.5)
plt.show()

# %% [markdown]
# ### Wrong, and still right: the compatible critic
# Put any $\hat Q$ in the place of $Q$. The theorem is linear in $Q$, so the gradient survives exactly if
#
# $$\sum_s d(s) \sum_a \pi_\theta(a \mid s)\, \nabla \log \pi_\theta(a \mid s)\, \big(Q(s, a) - \hat Q(s, a)\big) = 0 .$$
#
# That holds if $\hat Q = Q$. It also holds if $\hat Q(s, a) = w^\top \nabla \log \pi_\theta(a \mid s)$, linear in the *scores*,
# with $w$ the least-squares fit of $Q$ under $d$ and $\pi$: the condition above is then the normal equation of that fit.
# Such a critic is called **compatible**. A least-squares fit in other features gives no such promise.
#
# A table can represent every advantage, so on it a compatible critic is nothing special. Here is a policy of only four
# parameters, which sees of a state a constant and how far to the right it lies.

# %%
SEEN = np.stack([np.ones(FINISH + 1), (PLACE - ROW / 2) * (ROW < ROWS)], -1)  # [S, 2]


def coarse(params, obs):
    return Categorical(obs @ SEEN @ params)


params = rng.normal(size=(2, 2))
coarse_policy = numpy(tabular.policy_matrix(mdp, coarse, params))
coarse_traj, _ = tabular.to_transitions(mdp, coarse_policy, tau)
coarse_probability = np.exp(tabular.trajectory_log_prob(mdp, coarse_policy, tau))
coarse_q = numpy(tabular.action_value(mdp, coarse_policy))
coarse_score = pgjax.score(coarse, params, every_obs, every_action)  # [S, A, 2, 2]
frequency = numpy(tabular.visitation(mdp, coarse_policy, normalized=False))[:, None] * coarse_policy


def fit(features):
    """The least-squares fit of Q under d(s) π(a|s), linear in features [S, A, K]."""
    features, root = np.reshape(features, (coarse_q.size, -1)), np.sqrt(frequency).reshape(-1)
    w = np.linalg.lstsq(root[:, None] * features, root * np.reshape(coarse_q, -1), rcond=None)[0]
    return (features @ w).reshape(coarse_q.shape)


def expected_coarse(table):
    """E[Σ γ^t ∇ log π Q̂(s_t, a_t)] under the coarse policy."""
    each = pgjax.trajectory_gradients(coarse, params, coarse_traj, discount * taken(table), valid)
    return np.tensordot(coarse_probability, each, axes=1)


action_features = np.eye(2)[every_action]  # one number an action, whatever the state
row_features = (
    np.eye(ROWS + 1)[ROW][:, None, :, None] * action_features[:, :, None, :]
)  # one an action and row
fits = {
    "exact": coarse_q,
    "compatible: linear in the 4 scores": fit(coarse_score),
    "linear in 2 features of the action": fit(action_features),
    "linear in 8 features of action and row": fit(row_features.reshape(*coarse_q.shape, -1)),
}

# %% [markdown]
# **Check.** The compatible critic misses $Q$ by far more than the richer one, and its gradient is exact; that of the others
# is not. (Its mean over actions is zero in every state, since that of the scores is: what it approximates is the advantage.)

# %%
coarse_gradient = jax.grad(lambda params: tabular.objective(mdp, coarse, params))(params)
print(f"‖∇J‖ = {np.linalg.norm(coarse_gradient):.3f}\n{'critic':42s}{'error of Q̂':>12s}{'‖bias of ∇J‖':>16s}")
misfit, biases = {}, {}
for name, table in fits.items():
    misfit[name] = np.sqrt((frequency * (table - coarse_q) ** 2).sum() / frequency.sum())
    biases[name] = np.linalg.norm(expected_coarse(table) - coarse_gradient)
    print(f"{name:42s}{misfit[name]:12.3f}{biases[name]:16.1e}")
exact, compatible, *others = fits
check("exact critic: unbiased", biases[exact], 0.0, 1e-12)
check("compatible critic: unbiased", biases[compatible], 0.0, 1e-12)
assert all(misfit[compatible] > misfit[name] and biases[name] > 1e-2 for name in others)

# %% [markdown]
# ### Learning both
# Actor-critic as it is run: the critic follows its own TD target by gradient steps, the actor ascends
# $\gamma^t \nabla \log \pi\, \delta_t$ with the critic as it stands. On the way the critic is wrong and the actor's gradient
# biased. In a table the target's fixed point is $V$ itself, so that the bias fades as the critic learns; with a critic that
# cannot represent $V$ it would stay.

# %%
critic_optimizer = optax.sgd(learning_rate=0.5)


def actor_critic(seed):
    """The exact J, and the critic's error at the start of a run, before every update."""

    def update(carry, key):
        theta, critic, opt_state, critic_state = carry
        traj, valid, discount = sampled(key, mdp, theta, NUM_EPISODES)
        delta = pgjax.td_error(
            traj.reward, traj.obs @ critic, traj.next_obs @ critic, traj.terminated, gamma=mdp.gamma
        )
        ascent = pgjax.policy_gradient(softmax, theta, traj, discount * delta, valid)
        target = traj.obs @ critic + delta  # r + γ V̂(s')

        def critic_loss(critic):
            losses = pgjax.squared_error_loss(traj.obs @ critic, target)
            return jnp.sum(losses, where=valid) / NUM_EPISODES

        exact_value = tabular.state_value(mdp, tabular.policy_matrix(mdp, softmax, theta))
        figures = mdp.initial @ exact_value, jnp.abs(mdp.initial @ (critic - exact_value))
        updates, opt_state = optimizer.update(-ascent, opt_state)
        critic_updates, critic_state = critic_optimizer.update(jax.grad(critic_loss)(critic), critic_state)
        theta, critic = optax.apply_updates(theta, updates), optax.apply_updates(critic, critic_updates)
        return (theta, critic, opt_state, critic_state), figures

    critic = jnp.zeros(mdp.num_states)
    start = theta, critic, optimizer.init(theta), critic_optimizer.init(critic)
    return jax.lax.scan(update, start, jax.random.split(jax.random.key(seed), NUM_UPDATES))[1]


actor_critic_curves, critic_errors = numpy(jax.lax.map(actor_critic, seeds))

# %% [markdown]
# **Check.** All seeds end within 1 % of the optimum (5 % in the quick mode), and the critic has found the value of the
# start, but for the noise of its constant step size. On the way all seeds fall below the curve of the exact gradient, and
# by more than they scatter: that is bias, not noise. The news of the gate at the bottom right travels back one state at a
# time, and before it arrives the critic overstates the case for the left. After a hundred updates the critic is right, but by then the
# policy hardly ever tries the right, and a softmax that is so sure of itself moves slowly.

# %%
shortfall = 1 - actor_critic_curves[:, -1] / BEST
print(f"seeds end {shortfall.max():.2%} below the optimum at most")
late = critic_errors[
    :, -NUM_UPDATES // 10 :
].mean()  # the average over the last tenth: its step size is constant
print(f"critic's error at the start state: {critic_errors[:, 0].mean():.2f} at first, {late:.2f} at the end")
assert shortfall.max() < (0.05 if QUICK else 0.01)
assert late < 0.25

figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained", width_ratios=[1.6, 1])
for name, several, color in (
    ("REINFORCE", curves, "tab:blue"),
    ("actor-critic", actor_critic_curves, "tab:red"),
):
    for i, curve in enumerate(several):
        axes[0].plot(
            updates,
            curve,
            color=color,
            lw=0.8,
            alpha=0.6,
            label=f"{name}, one line a seed" if i == 0 else None,
        )
axes[0].plot(updates, exact_curve, color="black", lw=1.5, label="the exact gradient, same α")
axes[0].axhline(BEST, color="tab:green", ls="--", label=f"optimum, {BEST:.2f}")
axes[0].set(
    xlabel="number of the update (64 trajectories each)",
    ylabel="J(θ), exact",
    title="Led astray by a wrong critic, and back",
    xscale="log",
)
axes[0].set_xlim(1, NUM_UPDATES)
axes[0].legend(fontsize=8.5, loc="lower right")
axes[1].plot(updates, critic_errors.T, color="tab:red", lw=0.5, alpha=0.25)
axes[1].plot(updates, critic_errors.mean(0), color="darkred", lw=1.2, label="mean over the seeds")
axes[1].legend(fontsize=8.5)
axes[1].set(
    xlabel="number of the update", ylabel="|V̂(start) − V(start)|", title="The critic catches up", xscale="log"
)
axes[1].set_xlim(1, NUM_UPDATES)
plt.show()

# %% [markdown]
# ## What the steps have bought
# One gradient, seven weights $\Psi_t$, each with its exact bias and its exact noise on the slope.

# %%
ladder = {
    "R(τ), total return": total,
    "γ^t G_t, reward-to-go": discount * to_go,
    "γ^t (G_t − V)": with_value,
    "γ^t (G_t − V̂), wrong critic as baseline": as_baseline,
    "γ^t δ_t, exact critic": bootstrapped(critics["exact V"]),
    "γ^t A(s_t, a_t)": discount * taken(advantage),
    "γ^t δ_t, wrong critic": bootstrapped(critics["wrong V"]),
}
print(f"{'Ψ_t':44s}{'‖bias‖':>10s}{'tr Σ':>10s}")
for name, weight in ladder.items():
    off = np.linalg.norm(expected(weight) - gradient)
    print(f"{name:44s}{off:10.1e}{variance(weight):10.2f}")
    assert (off < 1e-12) == (name != "γ^t δ_t, wrong critic")
assert variance(with_value) < variance(discount * to_go) < variance(total)

# %% [markdown]
# ## Steps 8 and 9
# **8, the natural gradient.** A step of a given length in $\theta$ changes some policies much and others hardly at all.
# Measuring the step by what it does to the policy leads to the Fisher matrix, to NPG, TRPO and ACKTR: notebook
# `04_natural_gradient`. The exact one is `tabular.natural_gradient`, with `tabular.fisher`.
#
# **9, modern deep reinforcement learning.** PPO, DDPG, TD3 and SAC as answers to the questions that these steps raise:
# notebook `05_value_or_policy`.
#
# Bias and variance of all these weights, measured and drawn on several problems: notebook `02_variance`. The softmax
# policy and its score: notebook `03_boltzmann`. Which function and which test belong to which equation:
# [README](README.md).
