"""``train``: fine-tuning. Ray Data computes what stays the same once, Ray Train's workers train the rest on it.

Nothing is imported here: tasks and workers live in this package and start a process each.
"""
