"""A process that holds one library and one task, and answers requests, one a line.

    python -m benchmarks._peers.worker LIBRARY TASK STEPS

`compile` compiles anew and answers how long that took; `turn` runs one turn and answers its steps and
seconds. Answers are JSON. What libraries print goes to the error output.
"""

import importlib
import json
import os
import sys

from benchmarks._peers.tasks import TASKS

SIDES = {
    "pgjax": "pgjax_side",
    "rejax": "rejax_side",
    "rlax": "rlax_side",
    "stable-baselines3": "sb3_side",
    "sb3-contrib": "sb3_side",
    "sbx-rl": "sb3_side",
}


def main(arguments: list[str]) -> int:
    """Answer until the input ends."""
    library, name, steps = arguments
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    timed = importlib.import_module(f"benchmarks._peers.{SIDES[library]}").timed(TASKS[name], int(steps))
    for line in sys.stdin:
        answer = timed.compile() if line.strip() == "compile" else timed.turn()._asdict()
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
