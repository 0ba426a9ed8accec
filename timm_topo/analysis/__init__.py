"""What was learned, what it costs, and what remains of it after pruning."""
