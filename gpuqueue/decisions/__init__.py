"""Owns what is decided from a view: the view itself, its evaluation, the default policies; claims and changes nothing."""
