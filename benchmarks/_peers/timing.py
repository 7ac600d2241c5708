"""How a worker compiles and times a program."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol


class Turn(NamedTuple):
    """What one turn did.

    Attributes:
        steps: environment steps, or entries of an advantage.
        seconds: how long they took.
    """

    steps: int
    seconds: float


class Timed(Protocol):
    """Something that can be compiled and timed, as often as asked."""

    def compile(self) -> dict[str, float]:
        """Compile anew; `seconds` that it took, and perhaps a `result` that both sides must agree on."""
        ...

    def turn(self) -> Turn:
        """Train on, or compute again."""
        ...


class Training:
    """A training that is one compiled program.

    What is compiled for the seconds of it is the whole, from a key, as a user calls it. A turn trains on from
    where the last one stopped, so that random steps before the first gradient step are not counted.

    Attributes:
        steps: environment steps of a turn.
        make: gives two functions, built anew, `key -> (state, more)` and `(key, state) -> (state, more)`:
            what a user would get besides the state is computed as well.
    """

    def __init__(self, steps: int, make: Callable[[], tuple[Callable[..., Any], Callable[..., Any]]]):
        self.steps = steps
        self.make = make
        self.whole: Callable[..., Any] | None = None
        self.onward: Callable[..., Any] | None = None
        self.state: Any = None
        self.seed = 0

    def compile(self) -> dict[str, float]:
        """From Python to an executable; nothing is kept from the time before."""
        import jax

        jax.clear_caches()
        key, (whole, _) = jax.random.key(0), self.make()
        begin = time.perf_counter()
        self.whole = jax.jit(whole).lower(key).compile()
        return {"seconds": time.perf_counter() - begin}

    def turn(self) -> Turn:
        """The first one starts the training and compiles as well, uncounted."""
        import jax

        if self.onward is None:
            key, (whole, onward) = jax.random.key(0), self.make()
            self.state, _ = (self.whole or jax.jit(whole))(key)
            self.onward = jax.jit(onward).lower(key, self.state).compile()
            self.state, _ = jax.block_until_ready(self.onward(key, self.state))
        self.seed += 1
        key = jax.block_until_ready(jax.random.key(self.seed))
        begin = time.perf_counter()
        self.state, _ = jax.block_until_ready(self.onward(key, self.state))
        return Turn(self.steps, time.perf_counter() - begin)


class Function:
    """A compiled function of arrays, called many times in a turn.

    Attributes:
        calls: in a turn.
        size: entries that one call computes.
        function: of the arrays.
        arrays: its arguments.
    """

    def __init__(self, calls: int, size: int, function: Callable[..., Any], arrays: tuple[Any, ...]):
        self.calls, self.size, self.arrays = calls, size, arrays
        self.function = function
        self.compiled: Callable[..., Any] = function

    def compile(self) -> dict[str, float]:
        """The sum of absolute results tells whether the two sides compute the same."""
        import jax

        jax.clear_caches()
        self.compiled = jax.jit(
            lambda *arrays: self.function(*arrays)
        )  # a new one each time: nothing is cached
        begin = time.perf_counter()
        self.compiled.lower(*self.arrays).compile()
        spent = time.perf_counter() - begin
        return {"seconds": spent, "result": float(abs(self.compiled(*self.arrays)).sum())}

    def turn(self) -> Turn:
        """Each call is waited for."""
        import jax

        begin = time.perf_counter()
        for _ in range(self.calls):
            jax.block_until_ready(self.compiled(*self.arrays))
        return Turn(self.calls * self.size, time.perf_counter() - begin)


def gae_inputs(num_steps: int, num_envs: int) -> dict[str, Any]:
    """Random rewards `[T, N]`, values `[T + 1, N]` and flags, the same for all; one step in 200 ends."""
    import numpy as np

    draw = np.random.default_rng(0)
    reward, value, last = (
        draw.standard_normal(shape, np.float32)
        for shape in ((num_steps, num_envs), (num_steps, num_envs), (1, num_envs))
    )
    terminated = draw.random((num_steps, num_envs)) < 0.005
    return {"reward": reward, "values": np.concatenate([value, last]), "terminated": terminated}
