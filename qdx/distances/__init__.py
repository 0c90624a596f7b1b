"""Apply metrics to the rows of all pairs of configs, block by block, without holding a phase in memory."""
