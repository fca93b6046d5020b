"""Codecs, one a file; the name of the file is the name the user types."""
