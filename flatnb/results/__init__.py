"""What came out of training: records, their statistics, and sweeps that make them."""
