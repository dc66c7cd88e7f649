"""HTTP/1.1 as bytes: heads, body framing, header policy. Pure; owns no socket and no clock."""
