"""Which steps a run takes, in which order."""
