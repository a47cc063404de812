"""The connection to the SQL store: the pool, its engines, its schema, and the `db` commands."""
