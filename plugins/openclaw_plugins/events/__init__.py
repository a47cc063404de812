"""Event buses: how the events of a session reach all who listen to it, each in one order."""
