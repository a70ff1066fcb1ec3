"""Language models, as policies and learners: loading, adapters, log-probabilities, sharding over
processes. Imports core, losses and records.
"""
