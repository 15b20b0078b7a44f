"""Sinks: bytes to the outside, one file for each."""
