"""routes.yaml: text -> spec -> compiled table; matching, choosing and rewriting with it."""
