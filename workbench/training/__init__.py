"""The loop: one update on a screen, and runs of many that survive a kill. Imports methods,
evaluation and what is before them.
"""
