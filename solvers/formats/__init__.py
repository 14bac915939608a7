"""Problem files: every format that is read or written."""
