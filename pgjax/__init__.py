"""pgjax: policy gradients in JAX, as pure functions that compose.

The functions below are the whole vocabulary: estimators, losses, gradients, rollouts and the training loop.
Algorithms live in `pgjax.algorithms`, networks in `pgjax.networks`, whole experiments in
`pgjax.experiment`.
"""

from pgjax import algorithms, distributions, envs, networks, tabular
from pgjax.diagnostics import (
    Audit,
    VarianceParts,
    audit,
    audit_table,
    optimal_state_baseline,
    variance_decomposition,
)
from pgjax.distributions import Categorical, DiagGaussian, TanhGaussian
from pgjax.estimators.advantages import gae, standardize, td_error
from pgjax.estimators.baselines import (
    constant_baseline,
    leave_one_out_baseline,
    linear_baseline,
    optimal_baseline,
    subtract_baseline,
    time_baseline,
    time_features,
)
from pgjax.estimators.off_policy import importance_ratio, retrace, vtrace
from pgjax.estimators.recurrence import reverse_recurrence
from pgjax.estimators.returns import (
    episode_time,
    lambda_return,
    n_step_return,
    return_so_far,
    reward_to_go,
    time_discount,
    total_return,
)
from pgjax.gradients import policy_gradient, score, trajectory_gradients, trajectory_log_prob
from pgjax.losses.policy import (
    all_action_loss,
    clipped_surrogate_loss,
    score_function_loss,
    surrogate_loss,
)
from pgjax.losses.value import clipped_value_loss, expected_sarsa_loss, squared_error_loss
from pgjax.metrics import (
    NoiseScale,
    approximate_kl,
    clip_fraction,
    effective_sample_size,
    explained_variance,
    gradient_cosine,
    gradient_noise_scale,
    improvement_ratio,
    surrogate_improvement,
)
from pgjax.minibatch import minibatch_descent, shuffled_minibatches, take_minibatch, to_shards
from pgjax.natural.fisher import (
    CGInfo,
    empirical_fisher_matrix,
    fisher_matrix,
    fisher_vector_product,
    natural_gradient,
)
from pgjax.natural.trust_region import LineSearchInfo, backtracking_line_search, kl_step_size
from pgjax.normalization import (
    RewardScaling,
    RunningMoments,
    init_moments,
    init_reward_scaling,
    normalize,
    scale_reward,
    update_moments,
    update_reward_scaling,
)
from pgjax.replay import (
    ReplayState,
    add_to_replay,
    init_replay,
    n_step_transitions,
    sample_replay,
)
from pgjax.rollouts import (
    EnvCarry,
    EpisodeStats,
    episode_stats,
    evaluate,
    reset_envs,
    rollout,
    rollout_episodes,
)
from pgjax.training import train
from pgjax.types import Algorithm, Distribution, Network, Policy, Transition

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "Audit",
    "CGInfo",
    "Categorical",
    "DiagGaussian",
    "Distribution",
    "EnvCarry",
    "EpisodeStats",
    "LineSearchInfo",
    "Network",
    "NoiseScale",
    "Policy",
    "ReplayState",
    "RewardScaling",
    "RunningMoments",
    "TanhGaussian",
    "Transition",
    "VarianceParts",
    "add_to_replay",
    "algorithms",
    "all_action_loss",
    "approximate_kl",
    "audit",
    "audit_table",
    "backtracking_line_search",
    "clip_fraction",
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "constant_baseline",
    "distributions",
    "effective_sample_size",
    "empirical_fisher_matrix",
    "envs",
    "episode_stats",
    "episode_time",
    "evaluate",
    "expected_sarsa_loss",
    "explained_variance",
    "fisher_matrix",
    "fisher_vector_product",
    "gae",
    "gradient_cosine",
    "gradient_noise_scale",
    "importance_ratio",
    "improvement_ratio",
    "init_moments",
    "init_replay",
    "init_reward_scaling",
    "kl_step_size",
    "lambda_return",
    "leave_one_out_baseline",
    "linear_baseline",
    "minibatch_descent",
    "n_step_return",
    "n_step_transitions",
    "natural_gradient",
    "networks",
    "normalize",
    "optimal_baseline",
    "optimal_state_baseline",
    "policy_gradient",
    "reset_envs",
    "retrace",
    "return_so_far",
    "reverse_recurrence",
    "reward_to_go",
    "rollout",
    "rollout_episodes",
    "sample_replay",
    "scale_reward",
    "score",
    "score_function_loss",
    "shuffled_minibatches",
    "squared_error_loss",
    "standardize",
    "subtract_baseline",
    "surrogate_improvement",
    "surrogate_loss",
    "tabular",
    "take_minibatch",
    "td_error",
    "time_baseline",
    "time_discount",
    "time_features",
    "to_shards",
    "total_return",
    "train",
    "trajectory_gradients",
    "trajectory_log_prob",
    "update_moments",
    "update_reward_scaling",
    "variance_decomposition",
    "vtrace",
]
