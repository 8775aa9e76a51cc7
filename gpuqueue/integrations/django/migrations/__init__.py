"""Owns what Django's `makemigrations` compares the models with; makes no table."""
