"""More than one process, thread or device."""
