"""``bundle``: a classifier that was trained elsewhere becomes a bundle."""
