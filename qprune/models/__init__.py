"""Models and data by name: in, out, and how good they are."""
