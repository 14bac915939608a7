"""A run as the command line has it: settings, job, audit, page."""
