"""Who writes the tokens: sampling, continuing from a given beginning, rewriting wrong attempts.
Imports model and tasks.
"""
