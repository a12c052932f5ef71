"""The outer loop: the set that it begins with, its optimiser and guards, and what it records."""
