"""``evaluate``, ``compare``, ``promote`` and ``rollback``: how good a model is, and which of two is better.

Nothing is imported here: each command imports libraries that others do not need, and some of them take a second.
"""
