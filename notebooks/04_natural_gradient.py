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
# # The natural gradient
#
# The gradient points where $J$ rises most *for a step of a given length in the parameters*. But parameters are only names
# for policies: the same step can change one policy much and another hardly at all. This notebook, step 8 of the
# derivation, measures steps in policies instead. Each claim is followed by the code that holds it.
#
# | section | |
# |---|---|
# | 8.1 | steepest ascent in parameters and in policies |
# | 8.2 | the Fisher information, drawn |
# | 8.3 | correlated features |
# | 8.4 | another parametrisation, the same step |
# | 8.5 | Kakade's two states: a plateau, and leaving it |
# | 8.6 | how fast the exact natural gradient converges |
# | 8.7 | conjugate gradients instead of the matrix |
# | 8.8 | NPG, TRPO, ACKTR and PPO: one idea, four approximations |

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

import pgjax
from pgjax import networks, tabular
from pgjax.distributions import Categorical
from pgjax.natural import kfac

jax.config.update("jax_enable_x64", True)
QUICK = os.environ.get("PGJAX_NOTEBOOK_QUICK") == "1"


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


def apart(a, b):
    """‖a − b‖ / ‖b‖"""
    return np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b)


def dress(ax, title, x, y="", legend="best", **settings):
    ax.set(title=title, xlabel=x, ylabel=y, **settings)
    if legend:
        ax.legend(loc=legend, fontsize=9)


def square(x, y):
    """All pairs, [len(y), len(x), 2]."""
    return np.stack(np.meshgrid(x, y), -1)


# %% [markdown]
# ## 8.1 Steepest ascent in parameters and in policies
# Ascent takes the step $\Delta$ that gains most among all steps of a given length. To first order the gain is
# $\nabla J^\top \Delta$. What is left open is the ruler.
#
# - **In parameters**, $\lVert\Delta\rVert \le \epsilon$. The best step is along $\nabla J$.
# - **In policies**, $\sum_s d(s)\, \mathrm{KL}\big(\pi_\theta(\cdot|s) \,\Vert\, \pi_{\theta+\Delta}(\cdot|s)\big) \le
#   \delta$, with $d$ the states that $\pi_\theta$ visits, discounted and normalised. At $\Delta = 0$ the divergence has
#   its minimum, 0, so there is no first-order term:
#
# $$\mathrm{KL} = \tfrac12 \Delta^\top F \Delta + O(\lVert\Delta\rVert^3),
#   \qquad F = \sum_s d(s) \sum_a \pi_\theta(a|s)\, \nabla\log\pi_\theta(a|s)\, \nabla\log\pi_\theta(a|s)^\top$$
#
# So the Fisher information $F$ is the Hessian of the KL divergence, and a small ball is an ellipsoid. The largest
# $\nabla J^\top \Delta$ under $\tfrac12\Delta^\top F\Delta \le \delta$ is found with one Lagrange multiplier:
#
# $$\Delta = \sqrt{\frac{2\delta}{\nabla J^\top F^{-1} \nabla J}}\; F^{-1}\nabla J$$
#
# Its direction, $\tilde\nabla J = F^{-1}\nabla J$, is the **natural gradient** (Amari 1998; Kakade 2002).
#
# The problem for the first sections is Kakade's. There are two states; staying pays 1 in the first and 2 in the
# second, moving to the other one pays nothing. Every episode starts in the first state, γ = 0.9. The policy has two
# parameters, the log-odds of staying in each state. $J$ is normalised by 1−γ: it is a reward per step, 1.8 at best. It
# will be needed a million times, so it is written out for two states and held against the library's linear solve.

# %%
GAMMA, ALWAYS_1 = 0.9, np.array([1.0, 0.0])
STAY_1, STAY_2 = "log-odds of staying in state 1", "log-odds of staying in state 2"
mdp = tabular.kakade_mdp(GAMMA)


def stay_or_move(theta, obs):
    """θ [2]: the log-odds of staying."""
    logit = obs @ theta
    return Categorical(jnp.stack([logit, jnp.zeros_like(logit)], -1))


def log_odds(p):
    return np.log(p) - np.log1p(-np.asarray(p))


def value(theta, gamma=GAMMA, initial=ALWAYS_1):
    """J by Cramer's rule."""
    p, q = jax.nn.sigmoid(theta)
    leave_1, leave_2 = gamma * (1 - p), gamma * (1 - q)
    determinant = (1 - gamma * p) * (1 - gamma * q) - leave_1 * leave_2
    v = jnp.stack([(1 - gamma * q) * p + leave_1 * 2 * q, (1 - gamma * p) * 2 * q + leave_2 * p])
    return (1 - gamma) * initial @ v / determinant


def mean_kl(theta, new, d):
    """Σ_s d(s) KL(π_θ ‖ π_new)"""
    return d @ stay_or_move(theta, mdp.observations).kl(stay_or_move(new, mdp.observations))


@jax.jit
def solved(theta):
    """What the library says at θ: J, ∇J, F, F⁻¹∇J, d, π and Q, and, for 8.6, the policy after a natural step."""
    policy = tabular.policy_matrix(mdp, stay_or_move, theta)
    return {
        "J": (1 - GAMMA) * tabular.objective(mdp, stay_or_move, theta),
        "gradient": (1 - GAMMA) * tabular.policy_gradient(mdp, stay_or_move, theta),
        "F": tabular.fisher(mdp, stay_or_move, theta),
        "natural": (1 - GAMMA) * tabular.natural_gradient(mdp, stay_or_move, theta),
        "d": tabular.visitation(mdp, policy),
        "policy": policy,
        "Q": tabular.action_value(mdp, policy),
        "npg_step": tabular.npg_step(mdp, policy, 0.1),
    }


J = jax.jit(jax.vmap(value))
START = log_odds([0.8, 0.1])  # of Kakade's experiment
here = numpy(solved(START))
gradient, F, natural, d = (here[name] for name in ("gradient", "F", "natural", "d"))
print(f"J = {here['J']:.4f}\n∇J = {gradient}\nF⁻¹∇J = {natural}\nF = {F.tolist()}")
slope, hessian = jax.jit(lambda x: (jax.grad(mean_kl, 1)(x, x, d), jax.hessian(mean_kl, 1)(x, x, d)))(START)
assert np.abs(slope).max() < 1e-15  # the KL divergence has no first-order term
assert apart(hessian, F) < 1e-12  # and F is its Hessian
assert apart(F @ natural, gradient) < 1e-12

# %% [markdown]
# Is it the best step? We look, without any formula for it. In 1,440 directions the step goes as far as the *exact* KL
# divergence, or the Euclidean length, allows, and the *exact* gain in $J$ is computed. As the balls shrink, the best
# direction in the Euclidean ball tends to ∇J, the best one in the KL ball to the natural gradient.

# %%
ANGLES = np.linspace(-np.pi, np.pi, 1440, endpoint=False)
DIRECTIONS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)


def kl_radius(direction, theta, d, max_kl):
    """How far one can go until the KL divergence is max_kl, by bisection."""

    def halve(bounds, _):
        middle = bounds.mean()
        inside = mean_kl(theta, theta + middle * direction, d) < max_kl
        return jnp.where(inside, bounds.at[0].set(middle), bounds.at[1].set(middle)), None

    return lax.scan(halve, jnp.array([0.0, 30.0]), None, length=40)[0].mean()


radii = jax.jit(jax.vmap(kl_radius, (0, None, None, None)))


def ball(theta, d, max_kl):
    """The border of a KL ball, a point in each direction."""
    return theta + numpy(radii(DIRECTIONS, theta, d, max_kl))[:, None] * DIRECTIONS


angles = [np.arctan2(*vector[::-1]) for vector in (natural, gradient)]
print("   δ      KL / ½ΔᵀFΔ on the ball      best in the KL ball, to F⁻¹∇J      in the Euclidean ball, to ∇J")
for max_kl in (1e-2, 1e-4, 1e-6):
    border, circle = ball(START, d, max_kl), START + np.sqrt(max_kl) * DIRECTIONS
    ratio = max_kl / (0.5 * np.einsum("np,pq,nq->n", border - START, F, border - START))
    found = [ANGLES[numpy(J(points)).argmax()] for points in (border, circle)]
    off = np.degrees(np.abs(np.subtract(found, angles)))
    print(f"{max_kl:.0e}       {ratio.min():.4f} to {ratio.max():.4f} {off[0]:25.2f}° {off[1]:32.2f}°")
assert off.max() < 0.25  # that far apart are two directions
assert np.abs(ratio - 1).max() < 0.01
print(f"between ∇J and F⁻¹∇J: {np.degrees(angles[0] - angles[1]):.1f}°")
assert np.degrees(angles[0] - angles[1]) > 30

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", width_ratios=(1, 1.1))
x, y = np.linspace(-0.8, 3.6, 45), np.linspace(-3.9, -0.5, 45)
height = J(square(x, y).reshape(-1, 2)).reshape(45, 45)
axes[0].clabel(axes[0].contour(x, y, height, 16, cmap="Greys", vmin=-0.5), fontsize=8)
balls = (START + 0.6 * DIRECTIONS, "tab:orange", "‖Δ‖ = 0.6"), (ball(START, d, 0.01), "tab:blue", "KL = 0.01")
for points, c, label in balls:
    gain = numpy(J(points)) - here["J"]
    best = gain.argmax()
    axes[0].plot(*points.T, color=c, label=label)
    axes[0].annotate("", points[best], START, arrowprops={"arrowstyle": "->", "color": c, "lw": 2})
    axes[1].plot(np.degrees(ANGLES), gain / gain.max(), color=c, label=f"on the border of {label}")
    axes[1].plot(np.degrees(ANGLES[best]), 1.0, "o", color=c)
for angle, c, label in zip(angles, ("tab:blue", "tab:orange"), ("F⁻¹∇J", "∇J"), strict=True):
    axes[1].axvline(np.degrees(angle), color=c, linestyle=":", label=f"direction of {label}")
dress(axes[0], "The best step of each ball, over contours of J", STAY_1, STAY_2, aspect="equal")
dress(axes[1], "Two rulers, two steepest directions", "direction of the step, degrees", "gain / best gain")
axes[1].set(xticks=range(-180, 181, 60), ylim=(-1.9, 1.1))
plt.show()

# %% [markdown]
# ## 8.2 The Fisher information, drawn
# $F$ is another matrix at every θ: a metric. Here the log-odds of one state do not touch the other state's policy, so
# it is diagonal. With $p_s$ the probability of staying,
#
# $$F_{ss} = d(s)\, p_s (1 - p_s), \qquad
#   \nabla J_s = d(s)\, p_s (1-p_s)\, \big[Q(s, \text{stay}) - Q(s, \text{move})\big], \qquad
#   \tilde\nabla J_s = Q(s, \text{stay}) - Q(s, \text{move})$$
#
# The plain gradient is small for a state that is hardly visited and for a state whose policy is nearly sure, *however
# much there is to gain*. In the natural gradient both factors cancel, and the advantage is left. That is the general
# rule: $F^{+}\nabla J$ is, up to a factor, the weight vector $w$ of the critic $w^\top\nabla\log\pi$ that fits the
# advantage best (Kakade 2002, theorem 1; Peters & Schaal 2008).

# %%
LATTICE = square(np.arange(-3.0, 5.0), np.arange(-3.0, 5.0)).reshape(-1, 2)
there = jax.tree.map(lambda *x: np.stack(x), *[solved(theta) for theta in LATTICE])
metric = there["d"] * there["policy"].prod(-1)
advantage = there["Q"][..., 0] - there["Q"][..., 1]
assert apart(J(LATTICE), there["J"]) < 1e-12  # Cramer's rule
assert apart(there["F"], metric[..., None] * np.eye(2)) < 1e-12
assert apart(there["gradient"], metric * advantage) < 1e-12
assert apart(there["natural"], advantage) < 1e-10
scores = pgjax.score(stay_or_move, START, np.repeat(np.eye(2), 2, 0), np.array([0, 1, 0, 1]))
root = np.sqrt(d[:, None] * here["policy"]).ravel()  # the fit of the critic, weighted with d(s) π(a|s)
assert apart(np.linalg.lstsq(root[:, None] * scores, root * here["Q"].ravel())[0], natural) < 1e-10
for name, text in (("gradient", "‖∇J‖"), ("natural", "‖F⁻¹∇J‖")):
    length = np.linalg.norm(there[name], axis=-1)
    print(f"{text} on the lattice: from {length.min():.3f} to {length.max():.3f}")


def plane(ax, title):
    axis = np.linspace(-4.0, 5.0, 45)
    height = J(square(axis, axis).reshape(-1, 2)).reshape(45, 45)
    shade = ax.contourf(axis, axis, height, np.linspace(0, 1.8, 13), cmap="Greys", alpha=0.6)
    dress(ax, title, STAY_1, STAY_2, None, aspect="equal", xlim=(-4, 5), ylim=(-4, 5))
    return shade


figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
plane(axes[0], "Policies at KL = 0.001 from the dots")
shade = plane(axes[1], "The two gradients, all arrows of one length")
for i, (theta, lengths) in enumerate(zip(LATTICE, np.sqrt(0.002 / metric), strict=True)):
    labels = ("exact", "½ΔᵀFΔ = 0.001") if i == 0 else (None, None)
    axes[0].plot(*ball(theta, there["d"][i], 0.001).T, color="tab:blue", lw=1, label=labels[0])
    axes[0].plot(*(theta + lengths * DIRECTIONS).T, "k:", lw=0.8, label=labels[1])
axes[0].plot(*LATTICE.T, "k.", markersize=3)
for name, c, label in (("gradient", "tab:orange", "∇J"), ("natural", "tab:blue", "F⁻¹∇J")):
    unit = there[name] / np.linalg.norm(there[name], axis=1, keepdims=True)
    size = {"scale": 1.4, "scale_units": "xy", "angles": "xy", "width": 0.006}
    axes[1].quiver(*LATTICE.T, *unit.T, color=c, label=label, **size)
for ax in axes:
    ax.legend(loc="lower left", ncols=2)
figure.colorbar(shade, ax=axes, label="J, reward per step", shrink=0.85)
plt.show()

# %% [markdown]
# ## 8.3 Correlated features
# Features that say nearly the same give parameters that do nearly the same. Four arms have two features each, signs
# $(\pm1, \pm1)$ mixed to a correlation of ρ. With preferences $\theta\cdot\varphi(a)$ and a uniform policy, $F$ is the
# covariance of the features, so
#
# $$F = \begin{pmatrix}1 & \rho\\ \rho & 1\end{pmatrix}, \qquad \kappa(F) = \frac{1+\rho}{1-\rho}$$
#
# Rewards are linear in the features, $r(a) = \theta^*\cdot\varphi(a)$, and the objective has an entropy bonus of
# temperature 1. Then the best policy is that of $\theta^*$, $J$ is $-\mathrm{KL}(\pi_\theta \Vert \pi_{\theta^*})$ up to a
# constant, and $\nabla J = F(\theta)\,(\theta^* - \theta)$ at any θ. Two things follow.
#
# - **Plain ascent** multiplies the error by $I - \alpha F$. The steep direction wants $\alpha < 2/\lambda_{\max}$, or
#   the steps oscillate and grow; the flat one then shrinks by no more than $2/\kappa$ a step. With the best constant
#   $\alpha = 2/(\lambda_{\max} + \lambda_{\min})$ the error falls by $(\kappa-1)/(\kappa+1)$ a step.
# - **Natural ascent** with rate η moves straight at $\theta^*$ and multiplies the error by $1 - \eta$, without any κ.

# %%
SIGNS = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
BEST = np.array([0.6, -0.3])


def correlated_bandit(rho):
    """One state whose observation is the features of all arms, [4, 2]; with γ = 0 only one step counts."""
    values, vectors = np.linalg.eigh([[1.0, rho], [rho, 1.0]])
    features = SIGNS @ (vectors * np.sqrt(values)) @ vectors.T
    reward = (features @ BEST)[None]
    return tabular.TabularMDP(np.ones((1, 4, 1)), reward, [1.0], 0.0, features=features[None])


def linear(theta, features):
    return Categorical(features @ theta)


@jax.jit
def ascend(bandit, start, plain_rate, natural_rate):
    """Along θ += plain_rate ∇J + natural_rate F⁻¹∇J: errors θ − θ*, KL(π ‖ π*), and F; [1001, ...]."""

    def step(theta, _):
        gradient = tabular.policy_gradient(bandit, linear, theta, temperature=1.0)
        F = tabular.fisher(bandit, linear, theta)
        (a, b), (_, c) = F
        natural = jnp.array([[c, -b], [-b, a]]) @ gradient / (a * c - b * b)
        now, best = (linear(x, bandit.features[0]) for x in (theta, BEST))
        return theta + plain_rate * gradient + natural_rate * natural, (theta - BEST, now.kl(best), F)

    return lax.scan(step, start, None, length=1001)[1]


RHOS = np.array([0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
KAPPAS, needed = (1 + RHOS) / (1 - RHOS), []
print("   ρ    κ(F) measured   (1+ρ)/(1−ρ)    steps until the KL is 10,000 times smaller: plain, natural")
for rho, kappa in zip(RHOS, KAPPAS, strict=True):
    bandit = correlated_bandit(rho)
    at_uniform, at_best = (numpy(ascend(bandit, x, 0.0, 0.0))[2][0] for x in (np.zeros(2), BEST))
    values, vectors = np.linalg.eigh(at_best)
    start = BEST + 0.3 * (vectors / np.sqrt(values)).sum(1)  # as far, in KL, along both axes, whatever ρ
    _, plain_kl, _ = numpy(ascend(bandit, start, float(2 / values.sum()), 0.0))
    errors, kl, _ = numpy(ascend(bandit, start, 0.0, 0.5))
    needed.append([(x < 1e-4 * x[0]).argmax() for x in (plain_kl, kl)])
    measured = np.linalg.cond(at_uniform)
    print(f"{rho:5.2f} {measured:12.2f} {kappa:14.2f} {needed[-1][0]:50d} {needed[-1][1]:8d}")
    assert abs(measured / kappa - 1) < 1e-9
    assert apart(errors[:20], 0.5 ** np.arange(20)[:, None] * errors[0]) < 1e-6
needed = np.array(needed)
predicted = np.log(1e4) / (2 * np.log((KAPPAS[1:] + 1) / (KAPPAS[1:] - 1)))
assert np.abs(needed[3:, 0] / predicted[2:] - 1).max() < 0.1
assert len(set(needed[:, 1])) == 1

# %% [markdown]
# With ρ = 0.9, κ = 19, the two ways to fail can be seen. A step just below the largest stable one oscillates: the error
# along the steep axis changes its sign at every step. A tenth of it creeps: after twenty steps four fifths of the
# error along the flat axis are left.

# %%
bandit = correlated_bandit(0.9)
values, vectors = np.linalg.eigh(numpy(ascend(bandit, BEST, 0.0, 0.0))[2][0])
start, largest = BEST + vectors @ [1.0, 0.45], float(values[1])
runs = [("natural, η = 0.5", "tab:blue", 0.0, 0.5), ("plain, α = 1.9/λmax", "tab:red", 1.9 / largest, 0.0)]
runs += [("plain, α = 0.19/λmax", "tab:orange", 0.19 / largest, 0.0)]
_, fast, slow = errors = [numpy(ascend(bandit, start, *rates))[0][:31] for _, _, *rates in runs]
steep, flat = fast[:21] @ vectors[:, 1], slow[:21] @ vectors[:, 0]
assert (steep[1:] * steep[:-1] < 0).all()  # it oscillates
assert flat[20] > 0.8 * flat[0]  # it creeps

figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
points = BEST + square(np.linspace(-0.9, 1.1, 61), np.linspace(-0.9, 1.1, 61))
features = bandit.features[0]
height = jax.jit(lambda x: Categorical(x @ features.T).kl(linear(BEST, features)))(points)
axes[0].contour(*points.T, height.T, np.geomspace(1e-3, 3, 12), colors="grey", linewidths=0.6)
for (label, c, *_), path in zip(runs, errors, strict=True):
    axes[0].plot(*(BEST + path).T, ".-", color=c, lw=1, label=label)
axes[0].plot(*BEST, "k*", markersize=12)
axes[1].loglog(KAPPAS, needed[:, 0], "o", color="tab:orange", label="plain, best constant α")
axes[1].loglog(KAPPAS[1:], predicted, ":", color="tab:orange", label="predicted by (κ−1)/(κ+1)")
axes[1].loglog(KAPPAS, needed[:, 1], "o-", color="tab:blue", label="natural, η = 0.5")
dress(axes[0], "30 steps on contours of J, ρ = 0.9", "θ₁", "θ₂", aspect="equal")
dress(axes[1], "Until the KL to the best is 10,000 times smaller", "κ = (1+ρ)/(1−ρ)", "steps")
axes[1].set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
axes[1].set_yticks([3, 10, 30, 100, 300], ["3", "10", "30", "100", "300"])
axes[1].minorticks_off()
plt.show()

# %% [markdown]
# ## 8.4 Another parametrisation, the same step
# Let φ be other parameters of the same policies, $\theta = h(\varphi)$ with the Jacobian $K = h'(\varphi)$. The chain
# rule gives $\nabla_\varphi J = K^\top \nabla_\theta J$ and $F_\varphi = K^\top F_\theta K$. Carried to θ by $K$, the
# two steps are
#
# $$K\,\nabla_\varphi J = K K^\top\, \nabla_\theta J, \qquad
#   K F_\varphi^{-1} \nabla_\varphi J = K K^{-1} F_\theta^{-1} K^{-\top} K^\top \nabla_\theta J = F_\theta^{-1} \nabla_\theta J$$
#
# The plain step depends on the names, the natural one does not. For a linear $h$, $\theta = A\varphi$, that is exact.
# For any smooth $h$ two natural steps of rate η differ by $O(\eta^2)$, a share of $O(\eta)$ of the step. Damping breaks
# the rule: $\lambda I$ is a ruler in parameters again.

# %%
MIX, MOST_STEPS = np.array([[1.0, 0.6], [-0.5, 2.0]]), 2000
# A, and how much it is bent
NAMES = {"θ = φ": (np.eye(2), 0.0), "θ = Aφ": (MIX, 0.0), "θ = A sinh φ": (MIX, 1.0)}


@jax.jit
def walked(mix, bent, phi, num_steps, plain_rate, natural_rate, damping):
    """Walk in φ, knowing nothing of θ but the policy: the path in θ, [MOST_STEPS, 2]."""

    def to_theta(phi):
        return mix @ (phi + bent * (jnp.sinh(phi) - phi))

    def policy(phi, obs):
        return stay_or_move(to_theta(phi), obs)

    def step(i, loop):
        path, phi = loop
        plain = (1 - GAMMA) * tabular.policy_gradient(mdp, policy, phi)
        natural = (1 - GAMMA) * tabular.natural_gradient(mdp, policy, phi, damping=damping)
        return path.at[i].set(to_theta(phi)), phi + plain_rate * plain + natural_rate * natural

    return lax.fori_loop(0, num_steps, step, (jnp.full((MOST_STEPS, 2), jnp.nan), phi))[0]


def walk(name, num_steps, plain_rate, natural_rate, damping=0.0):
    """From Kakade's start, [num_steps, 2]."""
    mix, bent = NAMES[name]
    phi = np.linalg.solve(mix, START)
    phi = np.arcsinh(phi) if bent else phi
    return numpy(walked(mix, bent, phi, num_steps, plain_rate, natural_rate, damping))[:num_steps]


table = {f"natural, η = {eta:g}": (0.0, eta) for eta in (0.1, 0.01, 0.001)}
table |= {"plain, α = 0.01": (0.01, 0.0), "natural, η = 0.001, λ = 0.1": (0.0, 0.001, 0.1)}
print("difference of the first step from that in θ, as a share of it      θ = Aφ      θ = A sinh φ")
for label, rates in table.items():
    in_theta, *others = (np.diff(walk(name, 2, *rates), axis=0) for name in NAMES)
    table[label] = mixed, bent = [apart(other, in_theta) for other in others]
    print(f"{label:60s} {mixed:12.1e} {bent:17.1e}")
    assert (mixed < 1e-10) == label.startswith("natural") if "λ" not in label else mixed > 0.05
bent = [table[f"natural, η = {eta:g}"][1] for eta in (0.1, 0.01, 0.001)]
assert np.allclose(np.divide(bent[:-1], bent[1:]), 10, rtol=0.1)  # a share of O(η)
assert min(table["plain, α = 0.01"]) > 0.05

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.9), layout="constrained", sharey=True)
shown = (("Plain: three paths", (0.25, 0.0)), ("Natural: one path", (0.0, 0.005)))
for ax, (title, rates) in zip(axes, shown, strict=True):
    shade = plane(ax, title)
    paths = [walk(name, 501, *rates) for name in NAMES]
    for name, path, style in zip(NAMES, paths, ("-", "--", ":"), strict=True):
        ax.plot(*path.T, style, lw=2 if style == "-" else 3, label=name)
    ax.plot(*START, "ko")
    ax.legend(loc="lower left")
    spread = max(np.abs(path - paths[0]).max() for path in paths)
    print(f"{title}; largest distance {spread:.3f}")
    assert spread > 1 if "Plain" in title else spread < 0.02
figure.colorbar(shade, ax=axes, label="J, reward per step", shrink=0.85)
figure.suptitle("500 small steps in each parametrisation, drawn in θ")
plt.show()

# %% [markdown]
# ## 8.5 Kakade's two states: a plateau, and leaving it
# The start is Kakade's: stay with probability 0.8 in the first state and 0.1 in the second. The plain gradient of the
# second state carries the factor $d(2)$. Learning to stay in the first state makes $d(2)$ small; so the second state
# stops learning; so the first loop remains the better one. That is a plateau at $J \approx 1$. The natural gradient has
# no $d$ in it.
#
# How long the plateau lasts depends on γ, on the start, and on the scale of $J$, which scales the step. All three are
# in the table. It counts steps of $\theta \leftarrow \theta + \nabla J$ until both states prefer the better loop.


# %%
def prefers_the_better_loop(theta):
    return (theta[..., 0] < 0) & (theta[..., 1] > 0)


@jax.jit
def ascend_plainly(theta, gamma, initial, rate, most, stop):
    """θ and how many steps were taken: `most`, or until the better loop is preferred if `stop`."""

    def goes_on(loop):
        return (loop[1] < most) & ~(stop & prefers_the_better_loop(loop[0]))

    def step(loop):
        return loop[0] + rate * jax.grad(value)(loop[0], gamma, initial), loop[1] + 1

    return lax.while_loop(goes_on, step, (theta, 0))


MOST, plateau = 1_000_000, {}
print("  γ    P(stay) at the start    P(starts in state 1)    steps: J as it is     J normalised")
cases = {"gamma": 0.95}, {"gamma": 0.8}, {"stay": (0.6, 0.1)}, {"stay": (0.8, 0.3)}, {"first": 0.5}
for case in ({}, *cases):
    gamma, stay, first = ({"gamma": 0.9, "stay": (0.8, 0.1), "first": 1.0} | case).values()
    start = log_odds(stay), gamma, np.array([first, 1 - first])
    steps = [int(ascend_plainly(*start, rate, MOST, True)[1]) for rate in (1 / (1 - gamma), 1.0)]
    plateau[gamma, stay, first] = steps
    text = [f"{n:,}" if n < MOST else f"over {MOST:,}" for n in steps]
    print(f"{gamma:5.2f} {stay!s:>15s} {first:24.1f} {text[0]:>27s} {text[1]:>17s}")
assert abs(plateau[0.9, (0.8, 0.1), 1.0][0] - 307_461) <= 2  # in case another rounding moves it
assert plateau[0.9, (0.8, 0.1), 1.0][1] == plateau[0.8, (0.8, 0.1), 1.0][0] == MOST
assert max(plateau[0.9, (0.8, 0.3), 1.0] + plateau[0.9, (0.8, 0.1), 0.5]) < 1000

# %% [markdown]
# The natural gradient with rate 0.1 and the *normalised* $J$ is there after some tens of steps. Without damping it
# walks on: the probabilities of the worse actions vanish, and $F$ with them. With $F^{-1}$ taken literally the ratio
# ends as 0/0, the run as NaN. The pseudo-inverse of `tabular.natural_gradient` stays finite. The usual remedy is
# damping, $(F + \lambda I)^{-1}$. But once λ is larger than the $F$ of the state that is hardly visited, that state is
# slow again: with λ = 0.1 the plateau is back.


# %%
@jax.jit
def until_broken(theta):
    """Steps of θ += 0.1 F⁻¹∇J, the inverse taken literally, until they are not finite."""

    def step(loop):
        gradient, F = (f(mdp, stay_or_move, loop[0]) for f in (tabular.policy_gradient, tabular.fisher))
        return loop[0] + 0.1 * (1 - GAMMA) * (gradient / jnp.diag(F)), loop[1] + 1

    return lax.while_loop(lambda loop: jnp.isfinite(loop[0]).all() & (loop[1] < MOST_STEPS), step, (theta, 0))


broken, when = until_broken(START)
print(f"with F⁻¹ taken literally: {broken} after {when:,} steps")
assert not np.isfinite(broken).all()
moments = np.unique(np.geomspace(1, MOST, 120).astype(int))
plain_path = [START]
for steps in np.diff(moments):
    plain_path.append(ascend_plainly(plain_path[-1], GAMMA, ALWAYS_1, 1 / (1 - GAMMA), int(steps), False)[0])
shown = [("plain, J as it is", moments, np.stack(plain_path), "tab:orange")]
on_plateau = (moments > 5000) & (moments < 300_000)
assert np.abs(J(shown[0][2])[on_plateau] - 1.0).max() < 0.01
for damping, c in ((0.0, "tab:blue"), (1e-3, "tab:cyan"), (1e-2, "tab:green"), (0.1, "tab:purple")):
    path = walk("θ = φ", MOST_STEPS, 0.0, 0.1, damping)
    shown.append((f"natural, λ = {damping:g}", np.arange(1, MOST_STEPS + 1), path, c))
    arrived = prefers_the_better_loop(path)
    text = f"after {arrived.argmax()} steps" if arrived.any() else f"not within {MOST_STEPS:,} steps"
    print(f"natural, rate 0.1, damping {damping:5g}: both states prefer the better loop {text}")
    assert np.isfinite(path).all()
    assert arrived.any() == (damping < 0.1)
    assert damping > 0 or 10 < arrived.argmax() < 50

figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=(1.25, 1))
shade = plane(axes[1], "Through the parameters")
for label, when, path, c in shown:
    axes[0].semilogx(when, J(path), color=c, label=label)
    axes[1].plot(*path.T, color=c)
axes[1].plot(*START, "ko")
axes[0].axhline(1.8, color="black", lw=0.8, linestyle=":", label="the best policy")
dress(axes[0], "The plateau, and leaving it", "step", "J, reward per step", "center", ylim=(0.65, 1.9))
figure.colorbar(shade, ax=axes[1], label="J, reward per step")
plt.show()

# %% [markdown]
# ## 8.6 How fast the exact natural gradient converges
# For the softmax with a parameter for every state and action, rewards in [0, 1] and a uniform start, T steps of
# $\theta \leftarrow \theta + \eta F^{+} \nabla V$ with any η > 0 lead within
#
# $$V^* - V_T \;\le\; \frac{\log|A|}{\eta T} + \frac{1}{(1-\gamma)^2\, T}$$
#
# of the best value, and V never falls in any state (Agarwal et al. 2021, theorem 16 and lemma 17). The number of
# states is not in the bound, nor is how well the start covers them. For the plain gradient there is no such bound: it
# can take exponentially many steps (Li et al. 2021). In the policy itself a natural step is
# $\pi \leftarrow \pi\, e^{\eta A/(1-\gamma)}$, normalised (lemma 15), which is `tabular.npg_step`. V is not normalised here.

# %%
assert apart(log_odds(here["npg_step"][:, 0]), START + 0.1 * natural / (1 - GAMMA)) < 1e-12  # lemma 15

NUM_STATES, NUM_ACTIONS, HOW_LONG = 8, 4, 100 if QUICK else 300
GAMMAS, ETAS = (0.5, 0.9, 0.99), (0.01, 0.1, 1.0, 10.0)
rng = np.random.default_rng(0)
transition = rng.dirichlet(np.ones(NUM_STATES), (NUM_STATES, NUM_ACTIONS))
reward, initial = rng.uniform(size=(NUM_STATES, NUM_ACTIONS)), rng.dirichlet(np.ones(NUM_STATES))


@jax.jit
def npg(mdp, eta):
    """V of every iterate, [T + 1, S]."""

    def step(policy, _):
        return tabular.npg_step(mdp, policy, eta), tabular.state_value(mdp, policy)

    return lax.scan(step, jnp.full((NUM_STATES, NUM_ACTIONS), 1 / NUM_ACTIONS), None, length=HOW_LONG + 1)[1]


T = np.arange(1, HOW_LONG + 1)
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
print(f"   γ      η    V* − V after {HOW_LONG} steps     bound       largest gap / bound of all T")
for ax, gamma in zip(axes, GAMMAS, strict=True):
    problem = tabular.TabularMDP(transition, reward, initial, gamma)
    best = numpy(tabular.optimal_value(problem))
    for eta, c in zip(ETAS, plt.cm.viridis(np.linspace(0, 0.85, len(ETAS))), strict=True):
        values = numpy(npg(problem, eta))
        gap = (best - values[1:]) @ initial
        bound = np.log(NUM_ACTIONS) / (eta * T) + 1 / ((1 - gamma) ** 2 * T)
        print(f"{gamma:5.2f} {eta:6.2f} {gap[-1]:20.1e} {bound[-1]:14.1e} {(gap / bound).max():20.4f}")
        assert (gap <= bound).all()
        assert (np.diff(values, axis=0) >= -1e-13 / (1 - gamma)).all()
        ax.loglog(T, np.maximum(gap, 1e-9), color=c, label=f"η = {eta:g}")
        ax.loglog(T, bound, ":", color=c)
    ax.plot([], [], "k:", label="bound")
    dress(ax, f"γ = {gamma:g}", "steps T", "V* − V, from the start", "lower left" if gamma == 0.5 else None)
    ax.set_ylim(1e-8, None)
figure.suptitle("Exact natural gradient, eight states and four actions: the gap, and what is proved of it")
plt.show()

# %% [markdown]
# ## 8.7 Conjugate gradients instead of the matrix
# The Fisher matrix of P parameters has P² entries: for a network too many to store, let alone to invert. Conjugate
# gradients (Hestenes & Stiefel 1952) solve $(F + \lambda I)\,x = g$ and want only products of $F$ with a vector. With
# $J_s$ the Jacobian of the logits in θ and $H_s$ the Hessian of the KL divergence in the logits, a product is
#
# $$F v = \frac1B \sum_s J_s^\top H_s J_s\, v$$
#
# one forward-mode pass, a small product in the logits, one reverse-mode pass: `pgjax.fisher_vector_product`. After $k$
# products the error, in the norm of the matrix, is at most $2\big(\frac{\sqrt\kappa - 1}{\sqrt\kappa + 1}\big)^k$ of the
# first one, with $\kappa \le 1 + \lambda_{\max}/\lambda$. The more damping, the fewer products.
#
# `pgjax.natural_gradient` also returns a `CGInfo`: the relative residual $\lVert g - (F+\lambda I)x\rVert / \lVert g
# \rVert$, the curvatures $x^\top F x$ and $x^\top (F+\lambda I)\, x$, how many iterations moved $x$, and whether the
# tolerance was met.
#
# The problem is a grid with walls, two pits (−1), a goal (+1) and moves that slip one time in ten; γ = 0.95. The policy
# is a network with one hidden layer. A batch is as clean as a sample can be: states from the discounted visitation,
# actions from the policy, and their exact advantages.

# %%
BATCH, LAMBDA, DELTA = 512, 0.01, 0.01
grid = tabular.grid_mdp(["S...#", ".#..X", "...#.", ".X..G"], 0.95, slip=0.1)
actor = networks.CategoricalActor(4, networks.MLP((16,)))
initial_params = jax.jit(actor.init)(jax.random.key(0), grid.observations)
fresh, unravel = ravel_pytree(jax.tree.map(lambda x: np.asarray(x, float), initial_params))
fresh, P = np.asarray(fresh), fresh.size


def policy(flat, obs):
    return actor.apply(unravel(flat), obs)


@jax.jit
def draw(seed, flat):
    """A batch of observations, actions, log-probabilities and advantages, and the exact J."""
    state_key, action_key = jax.random.split(jax.random.key(seed))
    pi = tabular.policy_matrix(grid, policy, flat)
    state = jax.random.categorical(state_key, jnp.log(tabular.visitation(grid, pi)), shape=(BATCH,))
    action = jax.random.categorical(action_key, jnp.log(pi[state]))
    log_prob, advantage = jnp.log(pi)[state, action], tabular.advantage(grid, pi)[state, action]
    J_now = grid.initial @ tabular.state_value(grid, pi)
    return (grid.observations[state], action, log_prob, advantage), J_now


def surrogate(new, flat, batch):
    """Mean of (π'/π − 1) A, and mean KL(π ‖ π'), over the batch."""
    obs, action, log_prob, advantage = batch
    after = policy(new, obs)
    gain = pgjax.surrogate_improvement(after.log_prob(action), log_prob, advantage)
    return gain, policy(flat, obs).kl(after).mean()


@jax.jit
def gradient_of(flat, batch):
    return jax.grad(lambda new: surrogate(new, flat, batch)[0])(flat)


@jax.jit
def judge(candidates, flat, batch):
    """Of 16 new policies: the KL divergence on the batch, and the exact J."""
    kl = jax.vmap(lambda new: surrogate(new, flat, batch)[1])(candidates)
    return kl, lax.map(lambda new: tabular.objective(grid, policy, new), candidates)


def solve(flat, batch, gradient, damping=LAMBDA, tol=0.0):
    options = {"damping": damping, "tol": tol, "cg_iters": 20}
    return numpy(pgjax.natural_gradient(policy, flat, batch[0], gradient, **options))


middle = fresh
for seed in range(8):  # a few natural steps away from the fresh network
    batch, _ = numpy(draw(seed, middle))
    direction, info = solve(middle, batch, numpy(gradient_of(middle, batch)))
    middle = middle + np.sqrt(2 * DELTA / info.curvature) * direction
batch, J_middle = numpy(draw(100, middle))
g, F = numpy(gradient_of(middle, batch)), numpy(pgjax.fisher_matrix(policy, middle, batch[0]))
spectrum, vectors = np.linalg.eigh(F)
v = np.random.default_rng(0).normal(size=P)
assert apart(pgjax.fisher_vector_product(policy, middle, batch[0], v), F @ v) < 1e-10
kept = spectrum > 1e-10 * spectrum[-1]
print(f"{P} parameters, F has rank {kept.sum()}, largest eigenvalue {spectrum[-1]:.2f}")

found = {}
print("   λ      κ     after 20 products: relative residual     error in the norm of F + λI, and its bound")
for damping in (1.0, 0.1, 0.01, 0.001):
    damped, points, root = F + damping * np.eye(P), [], np.sqrt((spectrum[-1] + damping) / damping)
    exact = np.linalg.solve(damped, g)
    for tol in (0.0, *np.geomspace(0.5, 1e-10, 5 if QUICK else 40)):
        x, info = solve(middle, batch, g, damping, float(tol))
        error = np.sqrt((x - exact) @ damped @ (x - exact) / (exact @ g))
        bound = 2 * ((root - 1) / (root + 1)) ** info.iterations
        points.append((info.iterations, info.relative_residual))
        assert error <= bound + 1e-8
        assert abs(info.relative_residual - np.linalg.norm(g - damped @ x) / np.linalg.norm(g)) < 1e-8
        assert abs(info.curvature / (x @ F @ x) - 1) < 1e-6
        assert info.converged == (info.relative_residual <= tol)
        if tol == 0:
            print(f"{damping:6g} {root**2:7.1f} {info.relative_residual:22.1e} {error:36.1e} {bound:12.1e}")
    found[damping] = sorted(points)

# %% [markdown]
# How far to go is read off the curvature: $\alpha = \sqrt{2\delta / x^\top F x}$ makes the KL divergence δ to second
# order, and exactly δ as δ → 0. The reference implementations of TRPO use the damped curvature there instead; their
# steps are a little shorter.

# %%
x, info = solve(middle, batch, g)
DELTAS = np.geomspace(1e-7, 1e-1, 16)
ratios = {}
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for (damping, points), c in zip(found.items(), plt.cm.viridis(np.linspace(0, 0.85, 4)), strict=True):
    axes[0].semilogy(*zip(*points, strict=True), ".-", color=c, label=f"λ = {damping:g}")
for name, label in (("curvature", "step by xᵀFx"), ("damped_curvature", "step by xᵀ(F + λI)x, λ = 0.01")):
    sizes = np.sqrt(2 * DELTAS / getattr(info, name))
    assert abs(pgjax.kl_step_size(getattr(info, name), max_kl=0.1) / sizes[-1] - 1) < 1e-12
    ratios[name] = numpy(judge(middle + sizes[:, None] * x, middle, batch))[0] / DELTAS
    axes[1].semilogx(DELTAS, ratios[name], "o-", label=label)
    print(f"{label:30s} KL/δ at δ = 1e-7: {ratios[name][0]:.4f}    at δ = 0.1: {ratios[name][-1]:.4f}")
assert abs(ratios["curvature"][0] - 1) < 1e-3
assert abs(ratios["damped_curvature"][0] - info.curvature / info.damped_curvature) < 1e-3
axes[1].axhline(1.0, color="black", lw=0.8, linestyle=":")
dress(axes[0], "The more damping, the fewer products", "iterations", "relative residual", ylim=(1e-9, 2))
axes[0].set_xticks(range(0, 21, 5))
dress(axes[1], "The KL divergence of a normalised step", "δ", "KL after the step / δ")
plt.show()

# %% [markdown]
# ## 8.8 NPG, TRPO, ACKTR and PPO: one idea, four approximations
# All four look for the policy that improves most within reach of the policy that collected the data,
#
# $$\max_{\theta'}\; L(\theta') = \mathbb{E}\Big[\frac{\pi_{\theta'}(a|s)}{\pi_\theta(a|s)}\, A(s,a)\Big]
#   \quad\text{subject to}\quad \mathbb{E}\,\mathrm{KL}(\pi_\theta \Vert \pi_{\theta'}) \le \delta$$
#
# At θ' = θ the gradient of $L$ is the policy gradient. With $L$ to first and KL to second order the answer is the
# natural step of 8.1. They differ in how they approximate it.
#
# | | curvature | solved by | length of the step | what guards it |
# |---|---|---|---|---|
# | NPG (Kakade 2002; Rajeswaran et al. 2017) | F of the batch, damped | conjugate gradients | a rate η, or √(2δ / xᵀFx) | nothing |
# | TRPO (Schulman et al. 2015) | F of the batch, damped | conjugate gradients | √(2δ / xᵀFx), shortened until it holds | a line search on the batch: KL ≤ δ, and L improves |
# | ACKTR (Wu et al. 2017) | A ⊗ G for each layer, averaged over updates, damped | decompositions of A and G | η ν, ν = min(1, √(κ / η² gᵀd)), and momentum | ν: the KL that the curvature predicts |
# | PPO (Schulman et al. 2017) | none | many steps of Adam on one batch | wherever they end | the ratio's clip to 1 ± ε, or a KL penalty |
#
# In ACKTR each layer is a block of its own, and in a layer with inputs $\bar a$ and output derivatives $b$ the mean of
# products becomes a product of means, $\mathbb{E}[\bar a\bar a^\top \otimes b b^\top] \approx \mathbb{E}[\bar a
# \bar a^\top] \otimes \mathbb{E}[b b^\top] = A \otimes G$ (Martens & Grosse 2015).
#
# On the batch of 8.7, the directions side by side. Of all steps of one KL divergence the natural one gains most, to
# first order. The share of that gain which a direction $x$ has is its cosine with $F^{+}g$ in the metric $F$,
#
# $$\frac{g^\top x}{\sqrt{x^\top F x}\,\sqrt{g^\top F^{+} g}} = \cos_F(x,\, F^{+} g) \le 1$$

# %%
layers = kfac.dense_layers(actor.apply, unravel(middle), grid.observations)
adam = optax.adam(3e-3)


@jax.jit
def kfac_direction(seed, flat, batch, gradient):
    """(A ⊗ G + λI)⁻¹ g with the factors of this one batch, from actions drawn anew."""
    found = kfac.factors(actor.apply, unravel(flat), batch[0], jax.random.key(seed))
    state = kfac.refresh(kfac.update_factors(kfac.init(unravel(flat), layers), found))
    return ravel_pytree(kfac.precondition(state, unravel(gradient), damping=LAMBDA))[0]


@jax.jit
def ppo_path(flat, batch):
    """40 steps of Adam on the clipped surrogate, ε = 0.2: the path [41, P], and the first gradient."""
    obs, action, log_prob, advantage = batch

    def loss(new):
        new_log_prob = policy(new, obs).log_prob(action)
        return pgjax.clipped_surrogate_loss(new_log_prob, log_prob, advantage, clip_eps=0.2).mean()

    def step(loop, _):
        descent = jax.grad(loss)(loop[0])
        updates, opt_state = adam.update(descent, loop[1])
        return (loop[0] + updates, opt_state), (loop[0], descent)

    path, gradients = lax.scan(step, (flat, adam.init(flat)), None, length=41)[1]
    return path, gradients[0]


dense = np.linalg.solve(F + LAMBDA * np.eye(P), g)
directions = {"plain": g, "natural, CG": x, "natural, dense": dense}
directions["K-FAC"] = numpy(kfac_direction(7, middle, batch, g))
best_gain = np.sqrt(np.sum((vectors.T @ g)[kept] ** 2 / spectrum[kept]))  # √(gᵀF⁺g)
share = {name: g @ x / np.sqrt(x @ F @ x) / best_gain for name, x in directions.items()}
print("                 cosine with (F + λI)⁻¹g     share of the best gain at one KL divergence")
for name, x in directions.items():
    cosine = x @ dense / np.linalg.norm(x) / np.linalg.norm(dense)
    print(f"{name:16s} {cosine:23.4f} {share[name]:26.3f}")
assert share["plain"] < share["K-FAC"] < share["natural, CG"] <= 1
assert apart(directions["natural, CG"], dense) < 1e-2
path, descent = numpy(ppo_path(middle, batch))
assert apart(-descent, g) < 1e-10  # PPO begins with the plain gradient

# %% [markdown]
# Now they learn, from one fresh network, with δ = 0.01. So that only the direction differs, plain, K-FAC and natural are
# scaled by $\sqrt{2\delta/x^\top F x}$ and searched back from there as TRPO does: of the candidates $0.8^j$ times the
# full step, the first that keeps the bound and improves $L$ on the batch is taken. With the natural direction that *is*
# TRPO. PPO takes its 40 steps of Adam. NPG has no search, and both ways of measuring its step are tried.


# %%
@jax.jit
def searched(flat, batch, direction):
    curvature = direction @ pgjax.fisher_vector_product(policy, flat, batch[0], direction)
    full_step = pgjax.kl_step_size(curvature, max_kl=DELTA) * direction
    evaluate = lambda new: surrogate(new, flat, batch)  # noqa: E731
    return pgjax.backtracking_line_search(flat, full_step, evaluate, max_kl=DELTA)


def improve(method, seed, flat, batch):
    """The next policy, and which candidate the line search chose."""
    if method == "PPO":
        return numpy(ppo_path(flat, batch)[0][-1]), None
    direction = gradient = numpy(gradient_of(flat, batch))
    if method == "K-FAC":
        direction = numpy(kfac_direction(seed, flat, batch, gradient))
    elif method != "plain":
        direction, info = solve(flat, batch, gradient)
    if "NPG" in method:
        curvature = info.damped_curvature if "λ" in method else info.curvature
        return flat + numpy(pgjax.kl_step_size(curvature, max_kl=DELTA)) * direction, None
    flat, search = numpy(searched(flat, batch, direction))
    assert search.kl <= DELTA
    assert search.improvement > 0 or not search.accepted
    return flat, int(search.chosen)


METHODS = ["natural (TRPO)", "plain", "K-FAC", "PPO"]
METHODS += [] if QUICK else ["NPG, by xᵀFx", "NPG, by xᵀ(F + λI)x"]
SEEDS, ITERATIONS = (1, 12) if QUICK else (3, 60)
curves, picks = {method: np.zeros((SEEDS, ITERATIONS)) for method in METHODS}, []
best = float(tabular.optimal_value(grid) @ grid.initial)
print(f"the best policy has J = {best:.3f}; at the end of each run, and at the worst of its second half:")
for method in METHODS:
    for run in range(SEEDS):
        flat = fresh
        for i in range(ITERATIONS):
            drawn, curves[method][run, i] = numpy(draw(1000 * (run + 1) + i, flat))
            flat, pick = improve(method, i, flat, drawn)
            if "TRPO" in method:
                picks.append(pick)
    ends, worst = curves[method][:, -1], curves[method][:, ITERATIONS // 2 :].min(1)
    print(f"{method:20s}", "      ".join(f"{a:6.3f}  {b:6.3f}" for a, b in zip(ends, worst, strict=True)))
assert curves["plain"].max() < 0.01
for method in ("natural (TRPO)", "K-FAC"):
    assert curves[method][:, -1].min() > (0.5 if QUICK else 0.98) * best
if not QUICK:  # there the policy is nearly sure
    assert curves["NPG, by xᵀFx"][:, 30:].min() < best - 0.1
    assert curves["NPG, by xᵀ(F + λI)x"][:, 30:].min() > 0.98 * best
for text, how in (("the full step", 0), ("none", -1)):
    print(f"TRPO took {text} {picks.count(how)} times of {len(picks)}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
rays = {}
for name in ("natural, CG", "plain", "K-FAC"):
    x = directions[name]
    rays[name] = middle + np.sqrt(2 * np.geomspace(1e-4, 0.1, 16) / (x @ F @ x))[:, None] * x
rays["PPO, steps of Adam"] = path[np.r_[0:11, 12, 16, 20, 28, 40]]
for i, (name, candidates) in enumerate(rays.items()):
    kl, J_after = numpy(judge(candidates, middle, batch))
    axes[0].plot(kl, J_after - J_middle, ".-", color=f"C{i}", label=name)
    rays[name] = kl, J_after - J_middle
kl, gain = (x[[2, -1]] for x in rays["PPO, steps of Adam"])
parts = gain / np.interp(kl, *rays["natural, CG"])
print(f"PPO has {parts[0]:.2f} of the natural gain after 2 steps, {parts[1]:.2f} after 40")
assert parts[0] < parts[1]
for i, method in enumerate(METHODS):
    for ax in axes[1:] if i == 0 else axes[1:2] if i < 4 else axes[2:]:
        ax.plot(curves[method].T, color=f"C{i}", lw=1.2, label=[method] + [None] * (SEEDS - 1))
for ax in axes[1:]:
    ax.axhline(best, color="black", lw=0.8, linestyle=":")
dress(axes[0], "One batch", "KL from the policy that acted", "true gain in J")
dress(axes[1], "Learning: four directions", "step", "true J", "center right")
dress(axes[2], "Learning: with and without a line search", "step", "true J", "center right")
plt.show()

# %% [markdown]
# On one batch, at equal KL divergence, the natural direction gains most, K-FAC little less, the plain gradient clearly
# less. PPO begins as the plain gradient does and gets closer to the natural curve the longer Adam goes on.
#
# In learning the gap is wider. The plain gradient learns to keep away from the pits, and there it stays, J = 0: a
# plateau. PPO, here without an entropy bonus, ends on it in some runs and not in others. K-FAC and the natural
# direction pass it. Near the end the policy is nearly sure: F is almost zero, and a step scaled by $x^\top F x$ alone
# is so long that the quadratic model means nothing. Without a search NPG then falls off. Both guards help: the line
# search of TRPO, which takes no step at all where none will do, and the damped curvature, which bounds the step. This
# is one small problem with exact advantages, and no ranking of algorithms.
#
# ## What to keep
# - The gradient is steepest for a ruler in parameters, the natural gradient for the KL divergence. The Fisher
#   information is that ruler, the Hessian of the KL divergence.
# - The natural direction does not depend on the parametrisation. Correlated features, rarely visited states and nearly
#   sure policies do not slow it; damping gives some of that back.
# - A step is measured by $x^\top F x$; conjugate gradients find $x$ and $x^\top F x$ without the matrix.
# - NPG, TRPO, ACKTR and PPO are four prices for the same step: a solve, a solve and a search, a product of small
#   matrices, or many first-order steps and a clip.
#
# Further reading: Amari 1998, Natural gradient works efficiently in learning; Kakade 2002, A natural policy gradient;
# Peters & Schaal 2008, Natural actor-critic; Schulman et al. 2015, Trust region policy optimization; Schulman et al.
# 2017, Proximal policy optimization algorithms; Wu et al. 2017, Scalable trust-region method for deep reinforcement
# learning using Kronecker-factored approximation; Rajeswaran et al. 2017, Towards generalization and simplicity in
# continuous control; Agarwal et al. 2021, On the theory of policy gradient methods; Li et al. 2021, Softmax policy
# gradient methods can take exponential time to converge; Martens & Grosse 2015, Optimizing neural networks with
# Kronecker-factored approximate curvature.
