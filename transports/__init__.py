"""Transports, one a file or folder; its name is the name the user types."""
