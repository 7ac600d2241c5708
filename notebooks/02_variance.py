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
# # Variance, and what it costs to lower it
#
# A policy gradient is estimated from episodes as the score of every action times a weight Ψ,
#
# $$\hat g = \frac1N \sum_{i=1}^N \sum_t \gamma^t\, \nabla_\theta \log \pi_\theta(a_{i,t} \mid s_{i,t})\, \Psi_{i,t}$$
#
# and the whole art lies in Ψ. This notebook climbs the ladder of weights, from the total return to generalised
# advantage estimation, and measures every rung: its *bias*, the distance of its mean from the true gradient, and its
# *variance*, how far one estimate scatters around that mean. The problems are small enough to be solved, so the true
# gradient is known, and `pgjax.audit` compares with it.
#
# What is printed as [low, high] is a confidence interval of 99.9 %. A rung is called unbiased where the interval of
# its bias begins at 0. That nothing was seen is no proof, so theory is quoted beside it, and where theory gives a
# number the number is checked.

# %%
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

import pgjax
from pgjax import tabular

jax.config.update("jax_enable_x64", True)
QUICK = os.environ.get("PGJAX_NOTEBOOK_QUICK") == "1"
BATCH_SIZES, NUM_BATCHES = ((4,), 500) if QUICK else ((4, 32), 2000)
FEW = BATCH_SIZES[0]

# %% [markdown]
# ## Three problems
# - **random**: eight states, two of them terminal, three actions, Dirichlet transitions. Episodes end by chance.
# - **chain**: five states in a row, a small reward at the left end and a large one at the right; moves slip. Every
#   episode has twelve steps, the horizon is part of the task, and so values depend on the time.
# - **confident**: three states, two actions. The first wins 0.5, the second loses 0.5, and the policy already takes
#   the first nine times out of ten. Half of all steps end the episode.
#
# The policy is a softmax, linear in what it observes: the state, on the chain the time as well.


# %%
class Problem(NamedTuple):
    mdp: Any
    params: Any
    max_steps: int
    value: Any  # the true V: [S], or [H + 1, S] with a horizon
    wrong: Any  # a wrong one, of the same shape
    best: Any  # the best state baseline for one (s, a) draw
    exact: Any  # the true gradient
    objective: Any  # J


def apply(params, obs):
    return pgjax.Categorical(obs @ params)


@jax.jit
def solve(mdp, params):
    value = tabular.state_value(mdp, tabular.policy_matrix(mdp, apply, params))
    error = 0.5 * jnp.abs(value).max() * jnp.asarray(np.random.default_rng(1).normal(size=mdp.num_states))
    return {
        "value": value,
        "wrong": jnp.where(mdp.terminal, 0.0, value + jnp.broadcast_to(error, value.shape)),
        "best": pgjax.optimal_state_baseline(mdp, apply, params),
        "exact": tabular.policy_gradient(mdp, apply, params),
        "objective": tabular.objective(mdp, apply, params),
    }


def solved(mdp, params, max_steps):
    return Problem(mdp=mdp, params=params, max_steps=max_steps, **solve(mdp, params))


random_problem = tabular.random_mdp(jax.random.key(0), 8, 3, 0.95, num_terminal=2)
chain = tabular.chain_mdp(5, 0.95, slip=0.1, left_reward=0.2, start=2, horizon=12)
transition = np.zeros((4, 2, 4))
transition[:3, :, 3] = 0.5  # half of all steps end the episode, the others move on, each action its own way
for state in range(3):
    transition[state, 0, (state + 1) % 3] = transition[state, 1, (state + 2) % 3] = 0.5
transition[3, :, 3] = 1.0
confident = tabular.TabularMDP(
    transition, [[0.5, -0.5]] * 3 + [[0, 0]], [1.0, 0, 0, 0], 0.9, terminal=[False] * 3 + [True]
)

first, second = jax.random.split(jax.random.key(1))
PROBLEMS = {
    "random": solved(random_problem, jax.random.normal(first, (8, 3)), 40),
    "chain": solved(chain, 0.5 * jax.random.normal(second, (5 + 12, 2)), 12),
    "confident": solved(confident, jnp.array([[1.2, -1.0], [1.1, -1.0], [1.3, -1.1], [0, 0]]), 30),
}
for name, problem in PROBLEMS.items():
    print(
        f"{name:10s} {problem.mdp}   J = {problem.objective:.3f}   norm of the gradient {np.linalg.norm(problem.exact):.3f}"
    )

# %% [markdown]
# ## The ladder
# Each rung is a function from a batch of episodes to a gradient, written with the library's parts.
#
# 1. **total return**: every action is weighted with everything that happened, before it too.
# 2. **reward-to-go**: an action cannot change the rewards before it. They are noise, and are dropped.
# 3. **baselines**: what was to be expected anyway is subtracted: a constant, the mean at each time, the same without
#    the own episode (leave one out), a linear fit, and the baselines of least variance, one for the trajectory, for each
#    time, or for each parameter. All of these are fitted on the batch itself.
# 4. **critic**: the value of the state as a baseline, the true V or a wrong one.
# 5. **GAE(λ)**: the critic also stands in for rewards that are still to come. With λ = 1 it is the rung before.
# 6. **no γ^t**: as nearly every implementation has it, the steps of an episode all count the same. It stands beside the
#    quietest rung, GAE(0) with the true V, so that its bias can be seen.


# %%
LAMBDAS = (0.0,) if QUICK else (0.0, 0.3, 0.6, 0.9)


def ladder(problem):
    gamma, num_states = problem.mdp.gamma, problem.mdp.num_states

    def look_up(table, obs, later):
        state = obs[..., :num_states].argmax(-1)
        return table[state] if table.ndim == 1 else table[jnp.arange(len(obs))[:, None] + later, state]

    def discount(traj):
        return pgjax.time_discount(traj.terminated, traj.truncated, gamma=gamma)

    def to_go(traj):
        return pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=gamma)

    def rung(weight):
        def gradient(traj, valid):
            return pgjax.policy_gradient(apply, problem.params, traj, weight(traj, valid), valid)

        return gradient

    def minus(baseline):
        return rung(lambda traj, valid: discount(traj) * (to_go(traj) - baseline(traj, valid)))

    def scores(traj):  # with their γ^t: what multiplies Ψ
        return pgjax.score(apply, problem.params, traj.obs, traj.action) * discount(traj)[..., None, None]

    def least(per):
        return lambda traj, valid: pgjax.optimal_baseline(scores(traj), to_go(traj), valid, per=per)

    def least_per_parameter(traj, valid):
        plain = pgjax.policy_gradient(apply, problem.params, traj, discount(traj) * to_go(traj), valid)
        ones = pgjax.policy_gradient(apply, problem.params, traj, discount(traj), valid)
        return plain - least("parameter")(traj, valid) * ones

    def bootstrapped(table, lambda_, keep_discount=True):
        def weight(traj, valid):
            values = look_up(table, traj.obs, 0), look_up(table, traj.next_obs, 1)
            flags = traj.terminated, traj.truncated
            advantage = pgjax.gae(traj.reward, *values, *flags, gamma=gamma, lambda_=lambda_)
            return discount(traj) * advantage if keep_discount else advantage

        return rung(weight)

    rungs = {
        "total return": rung(lambda traj, valid: pgjax.total_return(discount(traj) * traj.reward, valid)),
        "reward-to-go": minus(lambda traj, valid: jnp.zeros_like(traj.reward)),
        "− constant": minus(lambda traj, valid: pgjax.constant_baseline(to_go(traj), valid)),
        "− mean per time": minus(lambda traj, valid: pgjax.time_baseline(to_go(traj), valid)),
        "− leave one out": minus(lambda traj, valid: pgjax.leave_one_out_baseline(to_go(traj), valid)),
        "− linear fit": minus(
            lambda traj, valid: pgjax.linear_baseline(pgjax.time_features(traj.obs), to_go(traj), valid)
        ),
        "− least, trajectory": minus(least("trajectory")),
        "− least, time": minus(least("time")),
        "− least, parameter": least_per_parameter,
        "− true V": minus(lambda traj, valid: look_up(problem.value, traj.obs, 0)),
        "− wrong V": minus(lambda traj, valid: look_up(problem.wrong, traj.obs, 0)),
        "− best b(s)": minus(lambda traj, valid: look_up(problem.best, traj.obs, 0)),
        **{f"GAE({x:g}), true V": bootstrapped(problem.value, x) for x in LAMBDAS},
        **{f"GAE({x:g}), wrong V": bootstrapped(problem.wrong, x) for x in LAMBDAS},
        "GAE(0), no γ^t": bootstrapped(problem.value, 0.0, keep_discount=False),
    }
    if QUICK and problem.mdp.horizon is None:  # these take long to compile, and the chain has them
        return {
            name: gradient for name, gradient in rungs.items() if not name.startswith(("− least", "− linear"))
        }
    return rungs


def sampler(problem):
    def policy(key, obs):
        return apply(problem.params, obs).sample_and_log_prob(key)

    return lambda key, n: pgjax.rollout_episodes(key, policy, problem.mdp, None, n, problem.max_steps)


def measure(name, estimators, exact, key):
    return pgjax.audit(
        key,
        estimators,
        sampler(PROBLEMS[name]),
        exact=exact,
        batch_sizes=BATCH_SIZES,
        num_batches=NUM_BATCHES,
        confidence=0.999,
    )


# %%
keys = jax.random.split(jax.random.key(2), len(PROBLEMS))
AUDITS = {
    name: measure(name, ladder(problem), problem.exact, key)
    for (name, problem), key in zip(PROBLEMS.items(), keys, strict=True)
}
for name, audits in AUDITS.items():
    print(f"{name.upper()}\n{pgjax.audit_table(audits)}\n")


# %%
COLOURS = ("grey", "tab:blue", "tab:green", "tab:orange", "tab:red", "tab:purple")


def colour(rung):
    groups = ("total", "reward"), ("V", "b(s)"), ("true V",), ("wrong V",)
    if rung.startswith("GAE"):
        return COLOURS[3] if "true" in rung else COLOURS[4] if "wrong" in rung else COLOURS[5]
    return (
        COLOURS[0] if rung.startswith(groups[0]) else COLOURS[2] if rung.endswith(groups[1]) else COLOURS[1]
    )


def draw_ladder(title, draw):
    figure, axes = plt.subplots(1, 3, figsize=(13, 6.2), layout="constrained", sharey=True)
    for ax, (name, audits) in zip(axes, AUDITS.items(), strict=True):
        for height, (rung, audit) in enumerate(audits.items()):
            draw(ax, height, audit, colour(rung), np.linalg.norm(PROBLEMS[name].exact))
        ax.set(yticks=range(len(audits)), yticklabels=list(audits), title=name)
        ax.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    texts = "no baseline", "fitted baseline", "critic as baseline", "GAE, true V", "GAE, wrong V", "no γ^t"
    handles = [
        plt.Line2D([], [], color=c, marker="o", linestyle="", label=t)
        for c, t in zip(COLOURS, texts, strict=True)
    ]
    handles += [
        plt.Line2D(
            [],
            [],
            color="black",
            marker="os"[i],
            linestyle="",
            fillstyle=("full", "none")[i],
            label=f"batches of {n}",
        )
        for i, n in enumerate(BATCH_SIZES)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle(title)
    return axes


def draw_variance(ax, height, audit, colour, norm):
    for i, n in enumerate(BATCH_SIZES):
        style = {"marker": "os"[i], "fillstyle": ("full", "none")[i], "markersize": 6 + 3 * i}
        ax.plot(n * audit.total_variance[i] / norm**2, height, color=colour, **style)
    ax.set_xscale("log")


for ax in draw_ladder(
    "Variance of one episode's gradient, against the square of the gradient", draw_variance
):
    ax.set_xlabel("N · tr Cov g / ‖∇J‖²")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
plt.show()


# %%
def draw_bias(ax, height, audit, colour, norm):
    for i, (low, high) in enumerate(audit.bias_norm_interval / norm):
        style = {"marker": "os"[i], "fillstyle": ("full", "none")[i], "markersize": 5}
        y = height + 0.3 * i - 0.15 * (len(BATCH_SIZES) - 1)
        ax.plot([low, high], [y, y], color=colour, linewidth=2, alpha=0.6)
        ax.plot(audit.bias_norm[i] / norm, y, color=colour, **style)
    ax.set_xscale("symlog", linthresh=0.1)


for ax in draw_ladder("Bias, with 99.9 % intervals: those that begin at 0 show none", draw_bias):
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set(
        xlabel="‖E g − ∇J‖ / ‖∇J‖",
        xlim=(-0.01, 5),
        xticks=[0, 0.05, 0.1, 1],
        xticklabels=["0", "0.05", "0.1", "1"],
    )
plt.show()

# %% [markdown]
# ### What the rungs have taught
# **Unbiased** are the total return, the reward-to-go, leave one out, any fixed function of the state as a baseline, the
# wrong V included, and GAE with the true V for every λ.

# %%
UNBIASED = ["total return", "reward-to-go", "− leave one out", "− true V", "− wrong V", "− best b(s)"]
UNBIASED += [f"GAE({x:g}), true V" for x in LAMBDAS]
for name, audits in AUDITS.items():
    lows = {rung: audits[rung].bias_norm_interval[:, 0] for rung in UNBIASED}
    assert all((low == 0).all() for low in lows.values()), (name, lows)
print(f"No bias seen in {len(UNBIASED)} rungs × {len(PROBLEMS)} problems × {len(BATCH_SIZES)} batch sizes.")

# %% [markdown]
# **A baseline that is fitted on its own batch is biased**, because it knows a little of the actions it is compared
# with. For the mean per time the amount is known where all episodes have the same length: it scales the gradient by
# 1 − 1/N, so the bias is ‖∇J‖/N. On the chain that is so. The baselines of least variance have a name that promises
# more, but with few episodes their own noise comes on top: the one per time has the largest bias of all that are
# fitted. It falls with N; fit them on many episodes, or on other ones.

# %%
norm = np.linalg.norm(PROBLEMS["chain"].exact)
fitted = AUDITS["chain"]["− mean per time"]
for n, bias, (low, high) in zip(BATCH_SIZES, fitted.bias_norm, fitted.bias_norm_interval, strict=True):
    print(
        f"chain, mean per time, N = {n:2d}: bias {bias:.4f} in [{low:.4f}, {high:.4f}], theory ‖∇J‖/N = {norm / n:.4f}"
    )
    assert low <= norm / n <= high
for name, audits in AUDITS.items():
    if "− least, time" not in audits:
        continue
    least = audits["− least, time"]
    print(f"{name:10s} least, time: bias {least.bias_norm.round(3)} at N = {list(BATCH_SIZES)}")
    assert least.bias_norm_interval[0, 0] > 0
    for rung in ("− constant", "− mean per time", "− leave one out", "− linear fit", "− least, parameter"):
        assert least.bias_norm[0] > audits[rung].bias_norm[0]
    if len(BATCH_SIZES) > 1:
        assert least.bias_norm[-1] < 0.5 * least.bias_norm[0]  # it falls with N

# %% [markdown]
# **Variance falls on the way**, and by a lot: on the first two problems the reward-to-go beats the total return, the true
# V beats the reward-to-go, and GAE(0) with the true V beats that. On the third the true V makes things *worse* than no
# baseline at all. More of that below.

# %%
for name, audits in AUDITS.items():
    steps = ["total return", "reward-to-go", "− true V", "GAE(0), true V"]
    found = [float(FEW * audits[rung].total_variance[0]) for rung in steps]
    print(f"{name:10s}", "  ".join(f"{rung} {x:.3f}" for rung, x in zip(steps, found, strict=True)))
    assert found[1] < found[0]
    if name == "confident":
        assert found[2] > 2.0 * found[1]
    else:
        assert found[3] < found[2] < found[1]

# %% [markdown]
# ## λ trades one for the other
# With a wrong critic $\hat V$ GAE(λ) is biased for λ < 1, and the bias can be computed. Its weight has the mean
#
# $$\hat A^\lambda = \delta + \gamma\lambda P\,(I - \gamma\lambda P_\pi)^{-1} \delta_\pi, \qquad
#   \delta(s,a) = r(s,a) + \gamma \sum_{s'} P(s'|s,a)\, \hat V(s') - \hat V(s),
#   \qquad \delta_\pi(s) = \sum_a \pi(a|s)\,\delta(s,a)$$
#
# which, put in the place of the advantage in the policy gradient theorem, is what the estimator converges to.


# %%
def expected_gae(problem, lambda_):
    mdp, critic = problem.mdp, problem.wrong
    policy = tabular.policy_matrix(mdp, apply, problem.params)
    live = ~mdp.terminal
    moves = mdp.transition * live[:, None, None] * live  # what is terminal is worth 0
    delta = (mdp.reward + mdp.gamma * moves @ critic - critic[:, None]) * live[:, None]
    mean_delta = (policy * delta).sum(1)
    flow = jnp.einsum("sa,sat->st", policy, moves)
    traces = jnp.linalg.solve(jnp.eye(mdp.num_states) - mdp.gamma * lambda_ * flow, mean_delta)
    weight = delta + mdp.gamma * lambda_ * moves @ traces
    visits = tabular.visitation(mdp, policy, normalized=False)

    def theorem(params):
        return (visits[:, None] * tabular.policy_matrix(mdp, apply, params) * weight).sum()

    return jax.grad(theorem)(problem.params)


every_lambda = jnp.linspace(0.0, 1.0, 21)
THEORY = {}
for name in ("random", "confident"):
    problem = PROBLEMS[name]
    mean = jax.jit(jax.vmap(lambda x, problem=problem: expected_gae(problem, x)))(
        jnp.r_[every_lambda, jnp.array(LAMBDAS)]
    )
    biases = jnp.linalg.norm((mean - problem.exact).reshape(len(mean), -1), axis=1)
    THEORY[name] = biases[: len(every_lambda)]
    assert biases[len(every_lambda) - 1] < 1e-10  # λ = 1: none
    for x, bias in zip(LAMBDAS, biases[len(every_lambda) :], strict=True):
        low, high = AUDITS[name][f"GAE({x:g}), wrong V"].bias_norm_interval[-1]
        print(f"{name:10s} λ = {x:.1f}: theory {bias:.4f}, measured in [{low:.4f}, {high:.4f}]")
        assert low <= bias <= high
assert AUDITS["chain"]["GAE(0), wrong V"].bias_norm_interval[-1, 0] > 0

# %% [markdown]
# In the mean squared error the two meet. With the true V there is nothing to trade: every λ is unbiased, the variance
# rises with λ, and λ = 0 is best. With a wrong one the bias falls as λ rises, to nothing at λ = 1. The variance is
# no longer least at λ = 0, because what the critic gets wrong differs from state to state and is noise too. Where the best
# λ lies depends on the critic, and on the batch, because averaging takes away variance and not bias. (On the chain
# values depend on the time, the formula above does not, and the bias is only measured.)

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
size = BATCH_SIZES[-1]
for ax, (name, audits) in zip(axes, AUDITS.items(), strict=True):
    norm = np.linalg.norm(PROBLEMS[name].exact)

    def at_every_lambda(figure, critic, audits=audits):
        rungs = [f"GAE({x:g}), {critic} V" for x in LAMBDAS] + [f"− {critic} V"]
        return np.array([getattr(audits[rung], figure)[-1] for rung in rungs])

    x = [*LAMBDAS, 1.0]
    ax.plot(
        x,
        at_every_lambda("total_variance", "true") / norm**2,
        "o-",
        color="tab:orange",
        label="variance = MSE, true V",
    )
    ax.plot(
        x,
        at_every_lambda("total_variance", "wrong") / norm**2,
        "s--",
        color="tab:red",
        label="variance, wrong V",
    )
    ax.plot(
        x,
        at_every_lambda("bias_norm", "wrong") ** 2 / norm**2,
        "^",
        color="tab:purple",
        label="bias², wrong V",
    )
    if name in THEORY:
        ax.plot(every_lambda, THEORY[name] ** 2 / norm**2, ":", color="tab:purple", label="bias², theory")
    ax.plot(
        x, at_every_lambda("mean_squared_error", "wrong") / norm**2, "-", color="black", label="MSE, wrong V"
    )
    ax.set(xlabel="λ", title=f"{name}, batches of {size}", ylim=(0, None))
axes[0].set_ylabel("in units of ‖∇J‖²")
axes[1].legend()
plt.show()
for audits in AUDITS.values():
    variances = [float(audits[f"GAE({x:g}), true V"].total_variance[-1]) for x in LAMBDAS]
    assert variances == sorted(variances)
for name, audits in AUDITS.items():
    rungs = {x: audits[f"GAE({x:g}), wrong V"] for x in LAMBDAS} | {1.0: audits["− wrong V"]}
    best = [min(rungs, key=lambda x: rungs[x].mean_squared_error[i]) for i in range(len(BATCH_SIZES))]
    print(f"{name:10s} wrong V: least error of those tried at λ = {best} for N = {list(BATCH_SIZES)}")

# %% [markdown]
# ## When the value baseline is not the best
# Take one state $s$ from the discounted visitation, one action, one return $R$ from there, and
# $g = \nabla\log\pi(a|s)\,(R - b(s))$. Its variance has three sources (Tucker et al. 2018):
#
# $$\underbrace{\mathrm{E}\big[\|\nabla\log\pi\|^2\, \mathrm{Var}(R \mid s,a)\big]}_{\text{trajectory}}
#  + \underbrace{\mathrm{E}_s\big[\mathrm{Var}_a\,\nabla\log\pi\,(Q - b)\big]}_{\text{action}}
#  + \underbrace{\mathrm{Var}_s\big[\mathrm{E}_a \nabla\log\pi\, Q\big]}_{\text{state}}$$
#
# A baseline changes the middle one alone, and the baseline that makes it least is not V but an average of Q in which an
# action counts with the square of its score:
#
# $$b^*(s) = \frac{\mathrm{E}_a\big[\|\nabla\log\pi(a|s)\|^2\, Q(s,a)\big]}{\mathrm{E}_a\big[\|\nabla\log\pi(a|s)\|^2\big]},
#   \qquad \text{action}(b) - \text{action}(b^*) = \mathrm{E}_s\big[\mathrm{E}_a\|\nabla\log\pi\|^2\,(b - b^*)^2\big]$$

# %%
PARTS = {}
print("problem     baseline   trajectory     action      state      total")
for name, problem in PROBLEMS.items():
    now = problem.value if problem.mdp.horizon is None else problem.value[:-1]
    baselines = {"none": jnp.zeros_like(now), "V": now, "b*": problem.best}
    parts = {
        label: pgjax.variance_decomposition(problem.mdp, apply, problem.params, baseline=b)
        for label, b in baselines.items()
    }
    for label, found in parts.items():
        print(
            f"{name:10s}  {label:8s} {found.trajectory:12.4f} {found.action:10.4f} {found.state:10.4f} {found.total:10.4f}"
        )
        assert abs(found.trajectory - parts["none"].trajectory) < 1e-10
        assert abs(found.state - parts["none"].state) < 1e-10
        assert found.action >= parts["b*"].action
    PARTS[name] = parts
assert PARTS["confident"]["V"].total > 1.5 * PARTS["confident"]["none"].total
assert PARTS["random"]["V"].total < PARTS["random"]["none"].total
assert PARTS["chain"]["V"].total < PARTS["chain"]["none"].total

# %% [markdown]
# For a tabular softmax over two actions the squared norms of the scores are $2\,\pi(2)^2$ and $2\,\pi(1)^2$, and so
#
# $$V = \pi(1)\,Q(1) + \pi(2)\,Q(2), \qquad b^* = \pi(2)\,Q(1) + \pi(1)\,Q(2)$$
#
# The probabilities have changed places! A sure policy's V is close to the value of what it nearly always does. But that
# action has almost no score; the rare action has nearly all of it, and that is the one whose weight should be small. On
# "confident" the rare action is worth about nothing, so no baseline is nearly the best, and V is the wrong number.

# %%
problem = PROBLEMS["confident"]
policy = tabular.policy_matrix(problem.mdp, apply, problem.params)
action_value = tabular.action_value(problem.mdp, policy)
swapped = (policy[:, ::-1] * action_value).sum(1)
for state in range(3):
    print(
        f"state {state}: π = {policy[state].round(3)}, Q = {action_value[state].round(3)},"
        f" V = {problem.value[state]:.3f}, b* = {problem.best[state]:.3f}"
    )
assert jnp.abs(swapped - problem.best)[:3].max() < 1e-10

weight = tabular.visitation(problem.mdp, policy)
squared_scores = 2.0 * (policy * policy[:, ::-1] ** 2).sum(1)
excess = (weight * squared_scores * (problem.value - problem.best) ** 2).sum()
parts = PARTS["confident"]
print(f"action(V) − action(b*) = {parts['V'].action - parts['b*'].action:.6f}, by the formula {excess:.6f}")
assert abs(parts["V"].action - parts["b*"].action - excess) < 1e-10

# %% [markdown]
# The parts are exact sums. To hold them against samples: start episodes in the discounted visitation, let only their
# first action count, and take the variance of what comes out.

# %%
NUM_DRAWS = 20_000 if QUICK else 200_000
start = tabular.TabularMDP(
    problem.mdp.transition, problem.mdp.reward, weight, problem.mdp.gamma, terminal=problem.mdp.terminal
)


def first_actions(key, baselines):
    def policy(key, obs):
        return apply(problem.params, obs).sample_and_log_prob(key)

    traj, valid = pgjax.rollout_episodes(key, policy, start, None, NUM_DRAWS, problem.max_steps)
    to_go = pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=start.gamma)
    first = valid & (jnp.arange(len(valid)) == 0)[:, None]

    def gradients(baseline):
        psi = to_go - baseline[traj.obs.argmax(-1)]
        return pgjax.trajectory_gradients(apply, problem.params, traj, psi, first).reshape(NUM_DRAWS, -1)

    return jax.vmap(gradients)(baselines)


baselines = jnp.stack([jnp.zeros(4), problem.value, problem.best])
drawn = np.asarray(jax.jit(first_actions)(jax.random.key(3), baselines))
for label, g in zip(("none", "V", "b*"), drawn, strict=True):
    squares = np.square(g - g.mean(0)).sum(1)
    error = 3.3 * squares.std() / NUM_DRAWS**0.5
    print(f"{label:5s} measured {squares.mean():.4f} ± {error:.4f}   exact {parts[label].total:.4f}")
    assert abs(squares.mean() - parts[label].total) < error

# %% [markdown]
# For whole episodes, where the terms of different times are added up, $b^*$ is no longer exactly the best, but the ladder
# above says the same: on "confident" V more than doubles the variance of the reward-to-go.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
for ax, (name, parts) in zip(axes, PARTS.items(), strict=True):
    bottom = np.zeros(len(parts))
    for part, shade in (("trajectory", "tab:blue"), ("state", "tab:grey"), ("action", "tab:orange")):
        height = np.array([float(getattr(found, part)) for found in parts.values()])
        ax.bar(list(parts), height, bottom=bottom, color=shade, label=f"{part} part", width=0.6)
        bottom += height
    ax.set(title=name, xlabel="baseline")
axes[0].set_ylabel("variance of one (s, a) draw")
axes[0].legend()
figure.suptitle("A baseline changes the action part alone, and V is not always a good one")
plt.show()

audits = AUDITS["confident"]
for rung in ("reward-to-go", "− true V", "− best b(s)"):
    print(f"whole episodes, {rung:14s} variance per episode {FEW * audits[rung].total_variance[0]:.4f}")
assert audits["− best b(s)"].total_variance[0] < audits["− true V"].total_variance[0]

# %% [markdown]
# ## γ^t, kept or dropped
# The true gradient weights the step at time $t$ with $\gamma^t$. Nearly every implementation leaves that out. What the
# two versions converge to is the same sum with two different weights of the states,
#
# $$\sum_s w(s) \sum_a \nabla\pi(a|s)\,Q(s,a), \qquad
#   w(s) = \sum_t \gamma^t P(s_t = s) \;\text{ kept}, \qquad w(s) = \sum_t P(s_t = s) \;\text{ dropped}$$
#
# The second exists where episodes end. The last rung of the ladder has dropped it; here it is on the problem "random".

# %%
problem = PROBLEMS["random"]
mdp = problem.mdp


def kept_field(params):
    return tabular.policy_gradient(mdp, apply, params)


def dropped_field(params):
    policy = tabular.policy_matrix(mdp, apply, params)
    visits = tabular.visitation(mdp, policy, normalized=False, discounted=False)
    return tabular.policy_gradient(mdp, apply, params, state_weight=visits)


kept, dropped = (np.asarray(field(problem.params)) for field in (kept_field, dropped_field))
apart = np.linalg.norm(kept - dropped)
print(
    f"exact: norm with γ^t {np.linalg.norm(kept):.4f}, without {np.linalg.norm(dropped):.4f}, apart {apart:.4f}\n"
)
audits = AUDITS["random"]
right, without = audits["GAE(0), true V"], audits["GAE(0), no γ^t"]
print("distance of the estimator's mean to the gradient of J, in batches of", BATCH_SIZES[-1])
for label, found in (("kept", right), ("dropped", without)):
    low, high = found.bias_norm_interval[-1]
    print(f"γ^t {label:8s} [{low:.4f}, {high:.4f}]")
assert (right.bias_norm_interval[:, 0] == 0).all()
assert (without.bias_norm_interval[:, 1] >= apart).all()
assert QUICK or without.bias_norm_interval[-1, 0] > 0  # a few hundred batches do not show so little

low, high = (interval[-1] for interval in without.bias_interval)
inside = (low <= dropped - kept) & (dropped - kept <= high)
print(
    f"the bias is the difference of the two sums: inside the interval for {inside.sum()} of {inside.size} parameters"
)
assert inside.all()

# %% [markdown]
# ### The field without γ^t is not a gradient
# Of nothing at all, and so not of an undiscounted return either: its Q is still discounted. A gradient has a symmetric
# Jacobian, for it is the matrix of second derivatives. This one's is not (Nota & Thomas 2020). Along a closed path a
# gradient does no work, one comes back to the same height; the other field does.


# %%
def fields(params):
    return {"γ^t kept": kept_field(params), "γ^t dropped": dropped_field(params)}


skew, jacobians = {}, jax.jit(jax.jacfwd(fields))(problem.params)
for name in ("γ^t kept", "γ^t dropped"):
    matrix = np.asarray(jacobians[name]).reshape(problem.params.size, -1)
    skew[name] = matrix - matrix.T
    relative = np.linalg.norm(skew[name]) / np.linalg.norm(matrix)
    print(f"{name:11s}  ‖Jacobian − its transpose‖ / ‖Jacobian‖ = {relative:.1e}")
    assert relative < 1e-12 if name == "γ^t kept" else relative > 1e-3

# the plane in which it turns the most
directions = np.linalg.eigh(1j * skew["γ^t dropped"])[1][:, -1]
across, along = (
    x.reshape(problem.params.shape) / np.linalg.norm(x) for x in (directions.real, directions.imag)
)
angles = np.linspace(0.0, 2.0 * np.pi, 129)
circle = problem.params + 2.0 * (
    np.cos(angles)[:, None, None] * across + np.sin(angles)[:, None, None] * along
)
WORK = {}
on_circle, height = jax.jit(jax.vmap(lambda params: (fields(params), tabular.objective(mdp, apply, params))))(
    circle
)
height = np.asarray(height)
for name in skew:
    g = np.asarray(on_circle[name])
    tangent = 2.0 * (np.cos(angles)[:, None, None] * along - np.sin(angles)[:, None, None] * across)
    power = (g * tangent).sum((1, 2))
    steps = 0.5 * (power[1:] + power[:-1]) * (angles[1] - angles[0])  # the trapezoidal rule
    WORK[name] = np.r_[0.0, np.cumsum(steps)]
    print(f"{name:11s}  work along the circle {WORK[name][-1]:.2e}")
assert abs(WORK["γ^t kept"][-1]) < 1e-8
assert abs(WORK["γ^t dropped"][-1]) > 1e-3

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained", width_ratios=(1, 1, 1.4))
limit = np.abs(skew["γ^t dropped"]).max()
for ax, (name, matrix) in zip(axes, skew.items(), strict=False):
    image = ax.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit)
    ax.set(title=name, xlabel="parameter", ylabel="parameter")
figure.colorbar(image, ax=axes[:2], shrink=0.8, label="Jacobian − its transpose")
axes[2].plot(angles, height - height[0], color="tab:grey", linewidth=6, alpha=0.4, label="J − J at the start")
for (name, work), c in zip(WORK.items(), ("tab:blue", "tab:red"), strict=True):
    axes[2].plot(angles, work, color=c, label=f"work of the field, {name}")
    axes[2].plot(angles[-1], work[-1], "o", color=c)
axes[2].axhline(0.0, color="black", linewidth=0.8)
axes[2].set(xlabel="angle on a circle of parameters", ylabel="work since the start", title="Once around")
axes[2].set_xticks([0, np.pi, 2 * np.pi], ["0", "π", "2π"])
axes[2].legend()
plt.show()

# %% [markdown]
# Where episodes never end, the undiscounted number of visits is infinite and there is nothing to converge to. The library
# says so, and offers the stationary distribution instead.

# %%
endless = tabular.kakade_mdp()
half = jnp.full((2, 2), 0.5)
try:
    tabular.visitation(endless, half, normalized=False, discounted=False)
except ValueError as error:
    print(error)
else:
    raise AssertionError("this should have been refused")
print("stationary distribution", tabular.stationary_distribution(endless, half))

# %% [markdown]
# ## What to keep
# - Dropping rewards that came before the action, and subtracting what does not depend on it, costs no bias. Fitting
#   what is subtracted on the same episodes costs a little, of the order 1/N; leave one out costs none.
# - V is a good baseline, not the best. The best weights Q with the squared score, and for a policy that is sure of a
#   good action V can be worse than nothing.
# - Bootstrapping lowers the variance further and is biased by what the critic gets wrong; λ sets the price.
# - γ^t belongs in front of every term of a discounted gradient. Without it the update follows a field that is the gradient
#   of nothing; it is common practice all the same, and `time_discount` makes the choice visible.
#
# Further reading: Greensmith, Bartlett & Baxter 2004, Variance reduction techniques for gradient estimates in RL; Schulman
# et al. 2016, High-dimensional continuous control using GAE; Tucker et al. 2018, The mirage of action-dependent baselines;
# Nota & Thomas 2020, Is the policy gradient a gradient?
