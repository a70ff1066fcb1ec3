"""How good a policy is: avg@k, pass@k, reflection, and every interval and test. Imports rollouts
and what is before it.
"""
