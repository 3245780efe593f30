"""What is in a catalog, how good a model is on it, and which of two models is the better one: a module a command.

Nothing is imported here: each command reads libraries that others can do without, and some of them take a second.
"""
