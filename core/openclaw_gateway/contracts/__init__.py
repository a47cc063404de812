"""The words and Protocols by which plugins serve one another; nothing here does anything."""
