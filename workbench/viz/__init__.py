"""Pictures of what the records hold: token heat maps, learning curves, pages.

Pure functions from data to HTML or figures. Imports core and records alone.
"""
