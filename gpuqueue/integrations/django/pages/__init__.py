"""Owns what the admin site's pages show; no page changes anything, or knows who looks at it."""
