"""``check``: what is in a catalog and what is wrong with it."""
