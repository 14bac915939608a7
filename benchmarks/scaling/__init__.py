"""What a run costs as it grows: phases measured here, clusters simulated."""
