"""The machine: clocks, memory, processes, secrets, legible text, ranges of numbers."""
