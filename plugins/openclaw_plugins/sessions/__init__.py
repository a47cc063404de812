"""Sessions: their store, their routes and their command."""
