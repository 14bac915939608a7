"""The strategies: what one step of a run decides."""
