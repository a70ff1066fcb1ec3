"""What is known of each token: what models say of it, what methods credit it with, where an
attempt went wrong. Imports training and what is before it.
"""
