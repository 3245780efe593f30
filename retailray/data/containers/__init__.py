"""The containers of image files, a module each: where they end, and what can be made whole again."""
