"""What a fault costs an application: each case many times, as distributions. See `make bench`."""
