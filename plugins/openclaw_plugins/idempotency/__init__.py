"""Idempotency: a POST with a key happens once. The step finds the key, the claims decide who is first."""
