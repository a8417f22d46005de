"""Bits under a budget: what choices cost, the best of them, and the evaluation that decides."""
