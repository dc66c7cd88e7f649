"""Control's web applications: one for operators, one for key holders.

They are separate applications on separate listeners, so that no path of the one can be reached
through the other. Nothing here is on the path of a proxied call.
"""
