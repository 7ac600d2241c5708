"""The weight Ψ that multiplies the score: returns, advantages and baselines."""
