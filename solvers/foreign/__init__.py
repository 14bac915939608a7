"""Everyone else's samplers: D-Wave's, OpenJij's, any with a `sample` method."""
