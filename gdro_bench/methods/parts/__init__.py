"""What methods are made of: the loops that several share, and the optional parts of their settings."""
