"""Control's side of what workers ask for: keys, money, limits, health of credentials.

One per node. Workers hold what they were given in memory; what is here is the node's view of it.
"""
