"""Servers with faults, and the engine that starts them."""
