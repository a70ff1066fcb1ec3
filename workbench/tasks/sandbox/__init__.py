"""Runs programs that a model wrote. ``outside`` asks, ``inside`` runs locked down; nothing else
imports ``inside``.
"""
