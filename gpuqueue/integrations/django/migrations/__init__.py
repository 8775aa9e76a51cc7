"""Holds the migrations that Django's `makemigrations` compares the models with; they create no table."""
