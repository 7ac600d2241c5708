"""What is fast, what is learned, and against whom: `python -m benchmarks`."""
