"""A seeded random sequence of faults, and after each what must be true. See `make chaos`."""
