"""Traces of forward passes, and every sample's gradient."""
