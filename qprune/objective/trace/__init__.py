"""What a forward pass did, and every sample's gradient."""
