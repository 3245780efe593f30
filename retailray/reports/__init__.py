"""What all reports share: the page, its plots and templates. Each capability has a report module of its own."""
