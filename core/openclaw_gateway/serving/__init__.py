"""From a gateway to a process that listens: sockets, framing, workers, signals, reloads; no step and no limit."""
