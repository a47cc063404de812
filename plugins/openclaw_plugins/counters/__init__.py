"""The fast account of rates and leases: in memory for one process, in Redis or Valkey for many."""
