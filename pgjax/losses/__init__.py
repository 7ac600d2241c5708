"""Losses: elementwise, to be minimised; the caller takes the mean."""
