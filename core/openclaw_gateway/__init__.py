"""The host of the OpenClaw gateway: it knows contracts, and no concrete plugin, database or cache driver."""

__version__ = "0.1.0"
