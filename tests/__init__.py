"""The tests mirror sslrun/; `make test` runs those that are not slow."""
