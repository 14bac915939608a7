"""The one kind of problem: a quadratic function of 0/1 variables with exact counts."""
