"""From files and environment to one frozen, typed document, with the origin of every value."""
