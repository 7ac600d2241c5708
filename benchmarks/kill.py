"""Kill a run with SIGKILL again and again, go on with it, and compare it with one that was never killed.

    python benchmarks/kill.py --kills 20

The run writes a checkpoint in every iteration, which takes longer than the iteration, so that most kills
fall into the writing of one. In between, now and then, the newest checkpoint is damaged as well. In the end
the parameters, the environments, the optimizer and metrics.csv must be those of a run in one piece.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from pgjax.experiment import checkpoints, load

SIZES = ["--num-envs", "4", "--num-steps", "16", "--network.hidden", "8", "--seeds", "2"]
ITERATIONS_PER_KILL = 40
WAIT_SECONDS = 180.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, default=None, help="for the runs; a temporary one by default")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="pgjax-kill-"))
    folder.mkdir(parents=True, exist_ok=True)
    whole, killed, dice = folder / "whole", folder / "killed", random.Random(args.seed)

    # what was compiled once is found again, so that the run spends its time running
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    sizes = [*SIZES, "--steps", str(64 * ITERATIONS_PER_KILL * (args.kills + 1))]
    start("a2c", *sizes, "--out", str(whole)).wait()
    process = start("a2c", *sizes, "--out", str(killed), "--checkpoint-every", "1")
    kills = torn = damaged = 0
    while kills < args.kills:
        if not wait_for_a_checkpoint(killed, process):
            break  # it has finished
        time.sleep(dice.uniform(0.0, 0.5))
        process.kill()
        process.wait()
        kills += 1
        torn += any((killed / "checkpoints").glob(".partial*"))
        there = checkpoints.iterations(killed)
        if len(there) > 1 and dice.random() < 0.25:
            file = killed / "checkpoints" / str(there[-1]) / "state" / "manifest.ocdbt"
            file.write_bytes(file.read_bytes()[:-1])
            damaged += 1
        print(f"kill {kills}: at iteration {there[-1] if there else 0}", flush=True)
        process = start("--resume", str(killed))
    if process.wait() != 0:
        print("the run did not come to its end")
        return 1
    if kills < args.kills:
        print(f"the run was over after {kills} kills")
        return 1

    print(f"{kills} kills, {torn} of them while a checkpoint was written, {damaged} checkpoints damaged")
    same = (whole / "metrics.csv").read_bytes() == (killed / "metrics.csv").read_bytes()
    states = [jax.tree.leaves(load(run)[1]) for run in (whole, killed)]
    same &= all(np.array_equal(a, b) for a, b in zip(*states, strict=True))
    print("bit for bit the same" if same else f"NOT the same: compare {whole} and {killed}")
    if same and args.folder is None:
        shutil.rmtree(folder)
    return 0 if same else 1


def start(*args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pgjax", "train", *args]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_a_checkpoint(run: Path, process: subprocess.Popen[bytes]) -> bool:
    """Until the run has made one of its own, so that every kill finds it further on."""
    before, deadline = checkpoints.iterations(run)[-1:], time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        now = checkpoints.iterations(run)[-1:]
        if process.poll() is not None:
            return False
        if now != before and now:
            return True
        time.sleep(0.005)
    raise TimeoutError(f"{run} makes no progress.")


if __name__ == "__main__":
    sys.exit(main())
