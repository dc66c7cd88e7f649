"""Who may call, and whether there is room and money for it. Pure."""
