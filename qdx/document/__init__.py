"""Turn tables and drawings into words: it knows numbers, columns and colours, and nothing of sweeps."""
