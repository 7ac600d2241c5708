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
# # The Boltzmann policy
#
# A policy gradient needs a policy that can be differentiated. For a finite number of actions the usual one is the
# Boltzmann, or softmax, policy: every action has a preference, and a temperature $T$ says how much preferences count.
# With preferences that are linear in features $\varphi(a)$ of the action,
#
# $$\pi_\theta(a) = \frac{e^{\theta\cdot\varphi(a)/T}}{\sum_b e^{\theta\cdot\varphi(b)/T}}$$
#
# This notebook derives its score, works one example through to the last digit, turns the temperature, and ends with
# what such a policy can do and a greedy one cannot: be random on purpose. Everything is computed exactly unless it
# says otherwise; each claim is followed by the check that holds it.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import pgjax
from pgjax import tabular
from pgjax.algorithms import reinforce

jax.config.update("jax_enable_x64", True)
QUICK = os.environ.get("PGJAX_NOTEBOOK_QUICK") == "1"


def close(a, b, tolerance=1e-10):
    return bool(jnp.abs(jnp.asarray(a) - jnp.asarray(b)).max() < tolerance)


# %% [markdown]
# ## The score identity
# Take the logarithm, $\log\pi(a) = \theta\cdot\varphi(a)/T - \log\sum_b e^{\theta\cdot\varphi(b)/T}$, and
# differentiate. The derivative of the second term is the mean feature under the policy, so
#
# $$\nabla_\theta \log \pi(a) = \frac1T\Big(\varphi(a) - \sum_b \pi(b)\,\varphi(b)\Big)$$
#
# In words: the feature of the action, minus the feature to be expected, divided by the temperature. We check it on
# five actions with three features each, against `pgjax.score` and against plain automatic differentiation.

# %%
num_actions, num_features, temperature = 5, 3, 0.7
feature_key, theta_key = jax.random.split(jax.random.key(0))
features = jax.random.normal(feature_key, (num_actions, num_features))
theta = jax.random.normal(theta_key, (num_features,))


def linear_policy(theta, obs):
    preferences = features @ theta
    return pgjax.Categorical.boltzmann(
        jnp.broadcast_to(preferences, (*obs.shape[:-1], num_actions)), temperature
    )


one_state = jnp.zeros((num_actions, 1))  # the policy does not look at the state: there is only one
actions = jnp.arange(num_actions)
pi = linear_policy(theta, one_state[0]).probs

by_the_identity = (features - pi @ features) / temperature
by_the_library = pgjax.score(linear_policy, theta, one_state, actions)
by_autodiff = jax.jacobian(lambda theta: jnp.log(linear_policy(theta, one_state[0]).probs))(theta)

print("score of action 0, by the identity", by_the_identity[0])
print("                     by pgjax.score", by_the_library[0])
print("                        by autodiff", by_autodiff[0])
assert close(by_the_identity, by_the_library)
assert close(by_the_identity, by_autodiff)

# %% [markdown]
# Two things follow at once. The scores average to zero, which is why a baseline costs nothing. And the covariance of
# the scores, the Fisher information, is the covariance of the features over $T^2$.

# %%
mean_score = pi @ by_the_library
covariance = jnp.einsum("a,ai,aj->ij", pi, features - pi @ features, features - pi @ features)
fisher = tabular.fisher(tabular.bandit_mdp(jnp.zeros(num_actions)), linear_policy, theta)

print("mean score", mean_score)
print("Fisher − Cov(φ)/T², largest entry", jnp.abs(fisher - covariance / temperature**2).max())
assert close(mean_score, 0.0)
assert close(fisher, covariance / temperature**2)

# %% [markdown]
# ## A worked example
# One state, two actions. Their features are 3 and 1, the parameter is θ = 1, the temperature 1. The first action is
# worth 1, the second 100. The policy prefers the wrong one, and the gradient has to say so. As a problem of the
# library it is a bandit with these two rewards, so that $J(\theta) = \sum_a \pi_\theta(a)\,Q(a)$.

# %%
phi, Q = jnp.array([3.0, 1.0]), jnp.array([1.0, 100.0])
bandit = tabular.bandit_mdp(Q)
theta = jnp.array(1.0)


def two_actions(theta, obs):
    return pgjax.Categorical(jnp.broadcast_to(theta * phi, (*obs.shape[:-1], 2)))


def probabilities(theta):
    return two_actions(theta, jnp.zeros(1)).probs


pi = probabilities(theta)
scores = pgjax.score(two_actions, theta, jnp.zeros((2, 1)), jnp.arange(2))
gradient = tabular.policy_gradient(bandit, two_actions, theta)

ways = {
    "Σ π(a) Q(a) [φ(a) − Σ π(b) φ(b)]": (pi * Q * (phi - pi @ phi)).sum(),
    "Σ π(a) Q(a) pgjax.score(a)": (pi * Q * scores).sum(),
    "tabular.policy_gradient": gradient,
    "jax.grad of tabular.objective": jax.grad(lambda t: tabular.objective(bandit, two_actions, t))(theta),
    "−jax.grad of pgjax.all_action_loss": -jax.grad(lambda t: pgjax.all_action_loss(probabilities(t), Q))(
        theta
    ),
}
print(f"probabilities  {pi[0]:.4f}  {pi[1]:.4f}")
for name, value in ways.items():
    print(f"{name:36s} {value:9.4f}")
    assert close(value, gradient)
assert [round(float(p), 4) for p in pi] == [0.8808, 0.1192]
assert round(float(gradient), 2) == -20.79

# %% [markdown]
# Rounding the probabilities to two digits before going on moves the answer in its first decimal. It is no other
# gradient, only a rounded one.

# %%
rounded = jnp.array([0.88, 0.12])
from_rounded = (rounded * Q * (phi - rounded @ phi)).sum()
print(f"with .88 and .12   {from_rounded:.4f}      with .8808 and .1192   {gradient:.4f}")
assert round(float(from_rounded), 2) == -20.91

# %% [markdown]
# ### The table of the update
# Gradient ascent with step size α sets $\theta \leftarrow \theta + \alpha \nabla J$; REINFORCE draws one action and
# sets $\theta \leftarrow \theta + \alpha\, Q(a)\, \nabla\log\pi(a)$, which is the same on average. The last columns
# show what drawing each action would do to θ and to the probability of that very action.

# %%
ALPHA = 0.01
print("action  feature    Q  probability    score  share of ∇J    effect of the update, if it is drawn")
for a in range(2):
    moved = theta + ALPHA * Q[a] * scores[a]
    print(
        f"{a + 1:6d}  {phi[a]:7.0f}  {Q[a]:3.0f}  {pi[a]:11.4f}  {scores[a]:7.4f}  {pi[a] * Q[a] * scores[a]:11.4f}"
        f"    θ {theta:.2f} → {moved:6.4f},  π({a + 1}) {pi[a]:.4f} → {probabilities(moved)[a]:.4f}"
    )
    assert probabilities(moved)[a] > pi[a]  # with a positive Q, what was drawn becomes more probable
print(f"{'∇J':>46s}  {gradient:11.4f}\n")

print("    α        θ     π(1)     π(2)       J     after one step of gradient ascent")
for alpha in (0.0, 0.001, 0.01, 0.1):
    moved = theta + alpha * gradient
    after = probabilities(moved)
    print(f"{alpha:5.3f}  {moved:7.4f}  {after[0]:7.4f}  {after[1]:7.4f}  {after @ Q:6.2f}")
    assert alpha == 0.0 or (after[1] > pi[1] and after @ Q > pi @ Q)

# %% [markdown]
# Whatever is drawn becomes more probable, the bad action too: its Q is positive. It is only that the good one moves θ
# seven hundred times as far. Subtract a baseline, here the value $V = \sum_a \pi(a) Q(a)$, and both draws push the same
# way. The gradient is the same; the estimate from one draw scatters less.

# %%
V = pi @ Q
advantage = Q - V
print(f"V = {V:.4f}")
for name, weight in (("Q", Q), ("Q − V", advantage)):
    draws = weight * scores
    variance = pi @ (draws - pi @ draws) ** 2
    print(
        f"{name:6s} a draw of 1 moves θ by {draws[0]:9.4f} α, a draw of 2 by {draws[1]:9.4f} α;"
        f"   mean {pi @ draws:.4f}, variance {variance:.1f}"
    )
assert close(pi @ (advantage * scores), gradient)
assert (advantage * scores < 0).all()
assert pi @ (advantage * scores) ** 2 < pi @ (Q * scores) ** 2

# %% [markdown]
# The same from samples: the bandit is an environment too, so REINFORCE can play it. The interval is three standard
# errors wide to each side.

# %%
NUM_DRAWS = 20_000 if QUICK else 200_000


def play(key, obs):
    return two_actions(theta, obs).sample_and_log_prob(key)


@jax.jit
def reinforce_draws(key):
    traj, valid = pgjax.rollout_episodes(key, play, bandit, None, NUM_DRAWS, max_steps=1)
    return pgjax.trajectory_gradients(two_actions, theta, traj, traj.reward, valid)


draws = np.asarray(reinforce_draws(jax.random.key(1)))
error = 3.0 * draws.std() / NUM_DRAWS**0.5
print(f"mean of {NUM_DRAWS:,} draws {draws.mean():.2f} ± {error:.2f}   exact {gradient:.2f}")
assert abs(draws.mean() - gradient) < error

# %%
grid = jnp.linspace(-3.0, 3.0, 301)
curve = jax.vmap(probabilities)(grid)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot(grid, curve @ Q, color="tab:blue", label="J(θ)")
near = jnp.array([-1.2, 2.2])
left.plot(near, V + gradient * (near - theta), "--", color="tab:orange", label="slope ∇J = −20.79 at θ = 1")
left.plot(theta, V, "o", color="black", label=f"θ = 1, J = {V:.2f}")
left.set(xlabel="θ", ylabel="expected return J", title="The return, and its slope")
left.legend()
right.plot(grid, curve[:, 0], color="tab:red", label="π(1), worth 1")
right.plot(grid, curve[:, 1], color="tab:green", label="π(2), worth 100")
right.plot([theta, theta], pi, "o", color="black", label="θ = 1")
stepped = theta + ALPHA * gradient
right.plot(stepped, probabilities(stepped)[0], "o", color="black", fillstyle="none")
right.plot(
    stepped,
    probabilities(stepped)[1],
    "o",
    color="black",
    fillstyle="none",
    label=f"after a step, α = {ALPHA:g}",
)
right.set(xlabel="θ", ylabel="probability", title="The policy")
right.legend(loc="center right")
plt.show()

# %% [markdown]
# ## Temperature
# Four actions with preferences 1, 2, 3.5 and 4, and every temperature from cold to hot. Three statements hold.
#
# - $T \to 0$: the policy becomes greedy; equal best preferences share the probability.
# - $T \to \infty$: it becomes uniform, and the entropy reaches its most, $\log A$.
# - In between the entropy rises, always: $\mathrm{d}H/\mathrm{d}T = \mathrm{Var}_\pi(\text{preference})/T^3 \ge 0$.

# %%
preferences = jnp.array([1.0, 2.0, 3.5, 4.0])


def at(temperature):
    return pgjax.Categorical.boltzmann(preferences, temperature)


def variance(p, x):
    return p @ (x - p @ x) ** 2


cold, hot = at(0.01).probs, at(1e6).probs
tied = pgjax.Categorical.boltzmann(jnp.array([1.0, 4.0, 4.0]), 0.01).probs
print("T = 0.01     ", cold.round(4))
print("T = 1,000,000", hot.round(4))
print("two equal best actions, T = 0.01", tied.round(4))
assert close(cold, jax.nn.one_hot(3, 4))
assert close(hot, 0.25, 1e-5)
assert close(at(1e6).entropy(), jnp.log(4.0))
assert close(tied, jnp.array([0.0, 0.5, 0.5]))

temperatures = jnp.geomspace(0.05, 100.0, 200)
slope = jax.jit(jax.vmap(jax.grad(lambda t: at(t).entropy())))(temperatures)
predicted = jax.vmap(lambda t: variance(at(t).probs, preferences) / t**3)(temperatures)
print("dH/dT against Var/T³, largest difference", jnp.abs(slope - predicted).max())
assert close(slope, predicted)
assert (slope > 0).all()

# %% [markdown]
# The temperature is also a price. Of all policies, the Boltzmann policy over Q maximises the expected return plus $T$
# times the entropy, and the most that can be had is $T \log\sum_a e^{Q(a)/T}$. `optimal_value` of the library finds
# the same by soft policy iteration.

# %%
others = np.random.default_rng(0).dirichlet(np.ones(4), 1000)
entropies = -(others * np.log(others)).sum(-1)
for t in (0.1, 1.0, 10.0):
    best = tabular.optimal_value(tabular.bandit_mdp(preferences), temperature=t)[0, 0]
    boltzmann = at(t).probs @ preferences + t * at(t).entropy()
    print(
        f"T = {t:4.1f}   Boltzmann {boltzmann:8.4f}   T log Σ exp(Q/T) {t * jax.nn.logsumexp(preferences / t):8.4f}"
        f"   best of 1000 random policies {(others @ preferences + t * entropies).max():8.4f}"
    )
    assert close(boltzmann, best)
    assert close(boltzmann, t * jax.nn.logsumexp(preferences / t))
    assert (others @ preferences + t * entropies < boltzmann).all()

# %% [markdown]
# And it decides how fast anything is learned. If the preferences are the parameters and also the values, the gradient
# is $\pi(a)\,(Q(a) - V)/T$. A cold policy no longer draws what it could learn from; a hot one hardly notices its
# preferences. At both ends the gradient vanishes.


# %%
def gradient_norm(t):
    weight = preferences - at(t).probs @ preferences
    return jnp.linalg.norm(at(t).probs * weight / t)


def expected_return(preferred, t):
    return pgjax.Categorical.boltzmann(preferred, t).probs @ preferences


norms = jax.vmap(gradient_norm)(temperatures)
assert close(
    norms, jax.vmap(lambda t: jnp.linalg.norm(jax.grad(expected_return)(preferences, t)))(temperatures)
)
assert norms[0] < 0.02 * norms.max()
assert norms[-1] < 0.05 * norms.max()

figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for a, p in enumerate(jax.vmap(lambda t: at(t).probs)(temperatures).T):
    axes[0].plot(temperatures, p, color=plt.cm.viridis(0.3 * a), label=f"preference {preferences[a]:g}")
axes[0].axhline(0.25, color="grey", linestyle=":", label="uniform")
axes[0].set(ylabel="probability", title="Greedy to uniform")
axes[0].legend(loc="upper right")
axes[1].plot(
    temperatures, jax.vmap(lambda t: at(t).entropy())(temperatures), color="tab:blue", label="entropy"
)
axes[1].axhline(np.log(4), color="grey", linestyle=":", label="log 4, the most there is")
axes[1].set(ylabel="entropy in nats", title="Entropy always rises")
axes[1].legend(loc="lower right")
axes[2].plot(temperatures, norms, color="tab:orange")
axes[2].set(ylabel="norm of the gradient", title="Neither cold nor hot learns")
for ax in axes:
    ax.set(xscale="log", xlabel="temperature T")
plt.show()

# %% [markdown]
# ## What a greedy policy cannot be
# In a problem whose states can be seen, some deterministic policy is among the best, and acting greedily on the right
# values finds it. That changes when states look alike. The short corridor (Sutton & Barto, example 13.1) has three
# states in a row, a reward of −1 a step, and the goal at the right end. In the middle state the two actions are
# swapped. And the agent cannot tell the three states apart.
#
# ```
#   start            swapped                       goal
#  ┌───────┐ right  ┌───────┐  left  ┌───────┐ right ┌───┐
#  │ s = 0 │ ─────→ │ s = 1 │ ─────→ │ s = 2 │ ────→ │ ■ │
#  └───────┘ ←───── └───────┘ ←───── └───────┘       └───┘
#             right            left
# ```
#
# A policy without memory is one number here, $p$, the probability of going right. In the library it is a `TabularMDP`
# whose `features` are the same for all states. We discount with γ = 0.99, so that wandering forever costs
# −1/(1−γ) = −100.

# %%
LEFT, RIGHT = 0, 1


def corridor(gamma, features=None):
    transition = np.zeros((4, 2, 4))
    for state, (left, right) in enumerate([(0, 1), (2, 0), (1, 3)]):
        transition[state, LEFT, left] = transition[state, RIGHT, right] = 1.0
    transition[3, :, 3] = 1.0
    reward = np.full((4, 2), -1.0)
    return tabular.TabularMDP(
        transition, reward, [1.0, 0, 0, 0], gamma, terminal=np.arange(4) == 3, features=features
    )


def blind(theta, obs):
    """One parameter, the log-odds of going right; every state has the feature 1."""
    return pgjax.Categorical(jnp.array([0.0, 1.0]) * theta * obs)


GAMMA = 0.99
aliased, seen = corridor(GAMMA, features=np.ones((4, 1))), corridor(GAMMA)


def log_odds(p):
    return jnp.log(p / (1.0 - p))


@jax.jit
def value_of(p, mdp=aliased):
    return tabular.state_value(mdp, jnp.broadcast_to(jnp.stack([1.0 - p, p]), (4, 2)))[0]


best_seen, value_seen, _ = tabular.policy_iteration(seen)
print(
    "with states that can be seen, the best policy goes",
    [["left", "right"][int(a)] for a in best_seen[:3].argmax(1)],
)
print(f"and its return is {value_seen[0]:.2f}")
assert close(value_seen[0], -(1 + GAMMA + GAMMA**2))

# %% [markdown]
# Without seeing them, both deterministic policies are the worst there are: always right bounces between the first two
# states, always left never leaves the first. The curve $J(p)$ is exact, and its peak lies well inside.

# %%
p = jnp.linspace(0.0, 1.0, 2001)
returns = jax.vmap(value_of)(p)
p_best, J_best = p[returns.argmax()], returns.max()
print(f"best memoryless policy: p = {p_best:.4f} with J = {J_best:.2f}")
print(f"best deterministic policies: always left {value_of(0.0):.2f}, always right {value_of(1.0):.2f}")
assert close(value_of(0.0), -100.0)
assert close(value_of(1.0), -100.0)
assert J_best > -11.0

# %% [markdown]
# The book does not discount. As γ goes to 1 our figures become the book's: the optimum is
# $p = 2 - \sqrt2 \approx 0.59$ with a return of −11.6, and the two ε-greedy policies with ε = 0.1 get −44 and −82.

# %%
book = corridor(0.99999)
undiscounted = jax.vmap(lambda p: value_of(p, book))(p)
print(f"optimum p = {p[undiscounted.argmax()]:.3f}, J = {undiscounted.max():.2f}")
print(f"ε-greedy: right {value_of(0.95, book):.1f}, left {value_of(0.05, book):.1f}")
assert close(p[undiscounted.argmax()], 2.0 - 2.0**0.5, 1e-3)
assert close(undiscounted.max(), -(6.0 + 4.0 * 2.0**0.5), 0.01)
assert close(value_of(0.95, book), -44.0, 0.5)
assert close(value_of(0.05, book), -82.0, 0.5)

# %% [markdown]
# ### Why acting on values does not get there
# A value-based agent learns how good each action is, then takes the better one. All it can hold here are two numbers,
# the values averaged over the states that hide behind the one observation:
#
# $$\bar Q(a) = \frac{\sum_s d(s)\,Q(s,a)}{\sum_s d(s)}$$
#
# with $d$ the discounted visitation. The greedy policy is the argmax of two numbers: one action, whichever it is.
# Exploration does not help, since ε only moves it to $p = ε/2$ or $p = 1 - ε/2$ with an ε that the values did not choose.
#
# Worse, the values say nothing about $p$ where it matters. By the policy gradient theorem
#
# $$\frac{\mathrm{d}J}{\mathrm{d}p} = \sum_s d(s)\,\big[Q(s, \text{right}) - Q(s, \text{left})\big]
#   = \Big(\sum_s d(s)\Big)\big[\bar Q(\text{right}) - \bar Q(\text{left})\big]$$
#
# so at the best $p$ the two values are *equal*. A policy gradient comes to rest there. A greedy agent sees a tie.


# %%
@jax.jit
def aliased_values(p):
    """Q̄(left), Q̄(right), and the sum of the discounted visitation."""
    policy = jnp.broadcast_to(jnp.stack([1.0 - p, p]), (4, 2))
    d = tabular.visitation(aliased, policy, normalized=False)
    return d @ tabular.action_value(aliased, policy) / d.sum(), d.sum()


inside = jnp.linspace(0.02, 0.98, 193)
q_bar, visits = jax.vmap(aliased_values)(inside)
difference = q_bar[:, RIGHT] - q_bar[:, LEFT]
by_autodiff = jax.jit(jax.vmap(jax.grad(value_of)))(inside)
print(
    "dJ/dp against Σd · (Q̄(right) − Q̄(left)), largest relative difference",
    jnp.abs(visits * difference / by_autodiff - 1).max(),
)
assert close(visits * difference / by_autodiff, 1.0, 1e-8)

by_theorem = tabular.policy_gradient(aliased, blind, log_odds(0.3))
assert close(by_theorem, 0.3 * 0.7 * jax.grad(value_of)(0.3))  # in the log-odds: dp/dθ = p (1 − p)

at_best, _ = aliased_values(p_best)
print(f"at p = {p_best:.3f}: Q̄(left) = {at_best[0]:.3f}, Q̄(right) = {at_best[1]:.3f}")
assert close(at_best[0], at_best[1], 0.02)

# %% [markdown]
# To the left of the peak going right looks better, to the right of it going left does. So greedy control has nowhere to
# stop: evaluate, act greedily (with ε = 0.1 to keep exploring), evaluate again, and the policy jumps from one bad end to
# the other for good. The values were exact; there is nothing left to learn better.

# %%
EPSILON = 0.1
policies = [0.5]
for _ in range(8):
    values, _ = aliased_values(jnp.asarray(policies[-1]))
    policies.append(1.0 - EPSILON / 2 if values[RIGHT] > values[LEFT] else EPSILON / 2)
print("ε-greedy policy iteration:", " → ".join(f"{p:.2f}" for p in policies))
print("returns:                  ", " → ".join(f"{value_of(p):.0f}" for p in policies))
assert ((difference > 0) == (inside < p_best)).all()
assert policies[1:] == [0.95, 0.05] * 4

# %% [markdown]
# ### REINFORCE gets there
# The algorithm of the library on the same environment, one parameter, γ^t kept so that its mean is the gradient of $J$,
# a leave-one-out baseline, and a step size that falls to zero. It starts at the two ε-greedy policies and in the middle.

# %%
NUM_ITERATIONS, NUM_EPISODES = (60, 32) if QUICK else (300, 64)
MAX_STEPS = 400 if QUICK else 1000  # γ^1000 is 4e-5: what is cut off does not count
STARTS = (0.05, 0.5, 0.95)


class OneParameter:
    """A network is anything with `init` and `apply`."""

    def init(self, key, obs):
        return jnp.zeros(())

    def apply(self, theta, obs):
        return blind(theta, obs)


def to_go_without_the_others(traj, valid, value):
    to_go = pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=GAMMA)
    return pgjax.subtract_baseline(to_go, pgjax.leave_one_out_baseline(to_go, valid), valid)


algorithm = reinforce.make(
    aliased,
    None,
    OneParameter(),
    optax.sgd(optax.linear_schedule(0.03, 0.0, NUM_ITERATIONS)),
    weight=to_go_without_the_others,
    num_episodes=NUM_EPISODES,
    max_steps=MAX_STEPS,
    gamma=GAMMA,
    discount_time=True,
)


@jax.jit
@jax.vmap
def learn(key, start):
    state = algorithm.init(key)
    state = state._replace(learned=state.learned._replace(actor_params=log_odds(start)))

    def iteration(state, key):
        state, _ = algorithm.step(key, state)
        return state, jax.nn.sigmoid(state.learned.actor_params)

    return jax.lax.scan(iteration, state, jax.random.split(key, NUM_ITERATIONS))[1]


keys = jax.random.split(jax.random.key(3), len(STARTS))
paths = dict(zip(STARTS, np.asarray(learn(keys, jnp.array(STARTS))), strict=True))
for start, path in paths.items():
    print(
        f"start p = {start:.2f}, J = {value_of(start):7.2f}   end p = {path[-1]:.3f}, J = {value_of(path[-1]):.2f}   best {J_best:.2f}"
    )
    assert value_of(path[-1]) > J_best - (0.5 if QUICK else 0.1)
    assert abs(path[-1] - p_best) < (0.1 if QUICK else 0.04)

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
axes[0].plot(p, returns, color="tab:blue", label="J(p), exact")
axes[0].plot(
    [0, 1], [value_of(0.0), value_of(1.0)], "s", color="tab:red", clip_on=False, label="deterministic: −100"
)
axes[0].plot(
    [0.05, 0.95], [value_of(0.05), value_of(0.95)], "D", color="tab:purple", label="ε-greedy, ε = 0.1"
)
axes[0].plot(
    p_best, J_best, "*", color="black", markersize=12, label=f"best: p = {p_best:.2f}, J = −{-J_best:.1f}"
)
axes[0].set(
    xlabel="p, probability of going right", ylabel="expected return J", title="The best policy is stochastic"
)
axes[0].legend(loc="lower center")

axes[1].axhline(0.0, color="grey", linewidth=0.8)
axes[1].plot(inside, difference, color="tab:blue", label="Q̄(right) − Q̄(left)")
axes[1].plot(p_best, 0.0, "*", color="black", markersize=12, label="best p: a tie")
jump = {"arrowstyle": "->", "color": "tab:purple", "connectionstyle": "arc3,rad=-0.35", "linewidth": 1.5}
axes[1].annotate("", (0.95, 0.0), (0.05, 0.0), arrowprops=jump)
axes[1].annotate("", (0.05, 0.0), (0.95, 0.0), arrowprops=jump)
axes[1].plot([], [], color="tab:purple", label="greedy improvement, ε = 0.1")
axes[1].set(
    xlabel="p, probability of going right",
    ylabel="difference of values",
    title="At the best p the values tie",
)
axes[1].legend(loc="lower left")

axes[2].axhline(p_best, color="black", linestyle="--", label=f"best p = {p_best:.2f}")
for start, path in paths.items():
    axes[2].plot(np.r_[start, path], label=f"REINFORCE from {start:g}")
axes[2].plot(
    np.arange(9), policies, ":", marker="D", markersize=3, color="tab:purple", label="ε-greedy improvement"
)
axes[2].set(xlabel="iteration", ylabel="p", ylim=(0, 1), title="REINFORCE finds the peak")
axes[2].set_xscale("symlog", linthresh=10)
axes[2].set_xticks([0, 5, 10, 30, 100, 300], ["0", "5", "10", "30", "100", "300"])
axes[2].set_xlim(0, NUM_ITERATIONS)
axes[2].legend(loc="upper right")
plt.show()

# %% [markdown]
# ## What to keep
# - The score of a softmax is the feature of the action minus the expected feature, over the temperature.
# - The temperature leads from greedy to uniform; both ends stop the learning.
# - A greedy policy is the argmax of values and therefore deterministic. Where states look alike the best memoryless
#   policy can be stochastic; there the values tie, and only a method that moves the *policy* finds the point where they do.
#
# Further reading: Sutton & Barto 2018, chapter 13; Singh, Jaakkola & Jordan 1994, Learning without state-estimation in
# partially observable Markovian decision processes.
