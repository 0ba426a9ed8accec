"""Measures networks: graphs and weights, costs, pruning and its effects."""
