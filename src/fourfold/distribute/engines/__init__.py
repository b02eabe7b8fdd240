"""Implementations of the Engine contract, one file or folder each; none imports another."""
