"""Bits under a budget: what each choice costs, the best choices, and the evaluation that decides."""
