"""The dialects, by the name that routes.yaml uses. A new family is a file and a row here."""

from __future__ import annotations

from proxy.dialects.anthropic import ANTHROPIC
from proxy.dialects.azure import AZURE, AZURE_V1
from proxy.dialects.base import Dialect
from proxy.dialects.bedrock import BEDROCK
from proxy.dialects.cohere import COHERE
from proxy.dialects.dashscope import DASHSCOPE
from proxy.dialects.gemini import GEMINI
from proxy.dialects.mistral import MISTRAL
from proxy.dialects.ollama import OLLAMA
from proxy.dialects.openai import OPENAI
from proxy.dialects.vertex import VERTEX

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        OPENAI,
        AZURE,
        AZURE_V1,
        ANTHROPIC,
        GEMINI,
        VERTEX,
        COHERE,
        MISTRAL,
        DASHSCOPE,
        OLLAMA,
        BEDROCK,
    )
}
