"""What `benchmarks.peers` runs in processes of their own: the same tasks, once in every library.

`tasks` says what is trained, and imports nothing. `worker` is such a process; it imports one of the modules
`pgjax_side`, `rejax_side`, `rlax_side` and `sb3_side`, which turn a task into something that can be timed.
"""
