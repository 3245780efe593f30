"""``score``: a whole catalog through a fixed pool of predictors, published when every row is accounted for.

Nothing is imported here: the tasks that fetch and decode live in this package and start a process each, which should
not read what only the driver needs.
"""
