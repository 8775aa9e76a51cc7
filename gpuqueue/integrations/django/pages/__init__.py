"""Builds what the admin site's pages show; changes nothing, and does not know the user."""
