"""Makes decisions from a view: builds it, evaluates it, and holds the default policies; claims and changes nothing."""
