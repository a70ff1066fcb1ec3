"""Pictures of one paper each. Imports core, records and the rest of viz."""
