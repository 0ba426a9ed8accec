"""HTML pages about networks: no script, no external resource."""
