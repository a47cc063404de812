"""Durable accounts: what organisations have used, kept where no crash loses it."""
