"""The search: specification, space, budget, storage, tracking, worker and commands."""
