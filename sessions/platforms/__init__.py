"""One module per platform; each ends in ``PLATFORM = Platform(...)``."""
