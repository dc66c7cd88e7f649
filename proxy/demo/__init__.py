"""The built-in demo upstream: what `headrace serve --demo` relays to when there is no vendor.

Speaks enough of OpenAI's, Anthropic's and Gemini's HTTP APIs for their SDKs; its answers are canned, its
token counts are real. Knows nothing of the relay.
"""
