"""Networks of packages that carry trained weights, each with its data and its figure."""
