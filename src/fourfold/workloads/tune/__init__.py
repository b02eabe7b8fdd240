"""Tuning: trials that are processes, and candidates that are items."""
