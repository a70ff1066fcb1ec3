"""Runs programs that a model wrote: ``outside`` asks, ``inside`` runs, ``layers`` lock it down.

Nothing else imports ``inside``; ``layers`` also locks the processes that compare answers.
"""
