"""Row problems: thousands of rows that share one matrix."""
