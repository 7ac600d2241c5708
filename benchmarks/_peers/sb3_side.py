"""The tasks in Stable-Baselines3, sb3-contrib and SBX, on gymnasium's environments, a `DummyVecEnv` of them.

gymnasium's CartPole-v1 and Pendulum-v1 are other programs for the dynamics of gymnax's. torch runs on one
thread: with networks this small a second one gains nothing, and where cores are shared it costs a lot.
"""

import time
from typing import Any

import numpy as np

from benchmarks._peers.tasks import Task
from benchmarks._peers.timing import Timed, Turn


class Learning:
    """A model that learns on in every turn.

    Attributes:
        model: of Stable-Baselines3 or one of its kin.
        warmup: random steps before it learns, taken in the first turn, uncounted.
        steps: environment steps of a turn.
    """

    def __init__(self, model: Any, warmup: int, steps: int):
        self.model, self.warmup, self.steps = model, warmup, steps

    def compile(self) -> dict[str, float]:
        """There is no whole program to compile; SBX compiles its parts at the first gradient step."""
        return {}

    def turn(self) -> Turn:
        """The first one begins with the random steps and one turn that is not counted."""
        if self.model.num_timesteps == 0:
            self.model.learn(self.warmup + self.steps, log_interval=None)
        before = self.model.num_timesteps
        begin = time.perf_counter()
        self.model.learn(self.steps, log_interval=None, reset_num_timesteps=False)
        spent = time.perf_counter() - begin
        return Turn(self.model.num_timesteps - before, spent)


def timed(task: Task, steps: int) -> Timed:
    """Something to time."""
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(task.env, task.options["num_envs"], seed=0)
    kind, options = _kind(task), _options(task)
    model = kind("MlpPolicy", env, seed=0, device="cpu", **options)
    return Learning(model, task.options.get("warmup_steps", 0), steps)


def _kind(task: Task) -> Any:
    if task.peer == "sbx-rl":
        import sbx

        return getattr(sbx, task.algorithm.upper())
    import torch

    torch.set_num_threads(1)
    if task.peer == "sb3-contrib":
        import sb3_contrib

        return getattr(sb3_contrib, task.algorithm.upper())
    import stable_baselines3

    return getattr(stable_baselines3, task.algorithm.upper())


def _activation(task: Task) -> Any:
    name = task.options["activation"]
    if task.peer == "sbx-rl":
        import flax.linen as nn

        return {"relu": nn.relu, "tanh": nn.tanh}[name]
    import torch

    return {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[name]


def _options(task: Task) -> dict[str, Any]:
    from stable_baselines3.common.noise import NormalActionNoise

    has = task.options
    found = {
        "learning_rate": has["learning_rate"],
        "gamma": has["gamma"],
        "policy_kwargs": {"net_arch": list(has["hidden"]), "activation_fn": _activation(task)},
    }
    if "num_steps" in has:
        found |= {"n_steps": has["num_steps"], "gae_lambda": has["lambda_"]}
    if task.algorithm in ("ppo", "a2c"):
        found |= {"vf_coef": has["value_coef"], "ent_coef": has["entropy_coef"], "max_grad_norm": has["clip"]}
    if task.algorithm == "ppo":
        batch_size = has["num_envs"] * has["num_steps"] // has["num_minibatches"]
        return found | {
            "n_epochs": has["num_epochs"],
            "batch_size": batch_size,
            "clip_range": has["clip_eps"],
        }
    if task.algorithm == "trpo":
        return found | {
            "batch_size": has["num_envs"] * has["num_steps"] // has["critic_minibatches"],
            "n_critic_updates": has["critic_epochs"],
            "target_kl": has["max_kl"],
            "cg_max_steps": has["cg_iters"],
            "cg_damping": has["damping"],
            "line_search_max_iter": has["num_backtracks"],
            "line_search_shrinking_factor": has["backtrack"],
        }
    if task.algorithm == "a2c":
        return found

    found |= {
        "buffer_size": has["capacity"],
        "learning_starts": has["warmup_steps"],
        "batch_size": has["batch_size"],
        "train_freq": 1,
        "gradient_steps": 1,
    }
    if task.algorithm == "dqn":
        found["target_update_interval"] = has["target_period"] * has["num_envs"]
        return found | ({"max_grad_norm": has["clip"]} if task.peer == "stable-baselines3" else {})
    found["tau"] = has["tau"]
    if task.algorithm == "td3":
        noise = NormalActionNoise(np.zeros(1), np.full(1, has["noise_std"]))
        return found | {"policy_delay": has["policy_delay"], "action_noise": noise}
    return found
