"""workbench: see, compare and change how language models learn from their own mistakes. Start at ``core.py`` (the nouns) and ``train.update`` (the loop)."""
