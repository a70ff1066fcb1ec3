"""Between this and other programs: their records of rollouts in; corrections, models and a run's
metrics out. Imports corrections and what is before it.
"""
