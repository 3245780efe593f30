"""Several models, several seeds each, on the same rows: which is better, and how sure that is."""
