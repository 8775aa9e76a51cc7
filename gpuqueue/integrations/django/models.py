"""Owns no model: Django tells only an app with this module that the databases were migrated."""
