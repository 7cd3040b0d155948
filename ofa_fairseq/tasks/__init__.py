"""Tasks: each is its instruction, the answers it allows, and its metric."""
