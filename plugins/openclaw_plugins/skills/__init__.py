"""Skills: what clients run by name. Sources bring them, the registry finds them, each run is a row that ends."""
