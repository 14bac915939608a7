"""A run on a language model."""
