"""The log: one line an exchange, and whatever else the process has to say."""
