"""qprune."""
