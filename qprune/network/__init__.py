"""The network as one vector of weights, and to exactly which counts it is pruned."""
