"""Language models around the walk: loading, calibration text, perplexity, what comes out."""
