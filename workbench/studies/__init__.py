"""The experiments whose records are in data/, and what they decide. Imports all but app."""
