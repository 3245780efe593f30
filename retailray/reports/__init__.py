"""Self-contained HTML reports with plots and pictures. Plain data in, one page out: a module a report."""
