"""What the gateway costs, measured beside its floor and its peers; `python tests/benchmarks` prints the table."""
