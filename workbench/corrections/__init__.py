"""Corrections of wrong attempts: composed, kept, trained on. Imports inspection and what is before
it.
"""
