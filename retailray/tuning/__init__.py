"""``tune``: many trials on what is computed once. Ray Tune draws and stops them; their records are ours."""
