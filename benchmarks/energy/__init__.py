"""Is a better sample a better network? Energies of many samplers, and what they cost in quality."""
