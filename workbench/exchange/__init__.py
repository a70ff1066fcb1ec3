"""Between this and other programs: their records of rollouts in, our corrections and models out.
Imports corrections and what is before it.
"""
