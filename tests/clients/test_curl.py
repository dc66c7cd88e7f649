"""curl, word for word as the stations' documents print it (their host replaced by ours)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.clients.access import Access
from tests.waiting import DEADLINE_S

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

# (what the document says, with $BASE and $KEY; what the answer's `object` must be)
DOCUMENTED = {
    "apigpt.cloud 02, no model": (
        """curl $BASE/v1/chat/completions \
        -H "Content-Type: application/json" \
        -H "Authorization: Bearer $KEY" \
        -d '{
         "messages": [{"role": "user", "content": "Say this message is from apigpt.cloud!"}],
         "temperature": 0.7
        }'""",
        "chat.completion",
    ),
    "apigpt.cloud 01, api-key header": (
        """curl $BASE/v1/chat/completions \
        -H "Content-Type: application/json" -H "api-key: $KEY" \
        -d '{"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "Hello world"}]}'""",
        "chat.completion",
    ),
    "apigpt.cloud, Azure style without api-version": (
        """curl $BASE/openai/deployments/gpt-35-turbo/chat/completions \
        -H "Content-Type: application/json" \
        -H "api-key: $KEY" \
        -d '{
         "messages": [{"role": "user", "content": "Say this message is from apigpt.cloud!"}],
         "temperature": 0.7
        }'""",
        "chat.completion",
    ),
    "apigpt.cloud 04, completion": (
        """curl $BASE/v1/completions \
        -H "Content-Type: application/json" \
        -H "Authorization: Bearer $KEY" \
        -d '{
            "model": "gpt-3.5-turbo",
            "prompt": "I am a",
            "max_tokens": 7,
            "temperature": 0
          }'""",
        "text_completion",
    ),
    "apigpt.cloud 05, embeddings": (
        """curl $BASE/v1/embeddings \
        -H "Content-Type: application/json" \
        -H "Authorization: Bearer $KEY" \
        -d '{
            "input": "The food was delicious and the waiter...",
            "model": "text-embedding-ada-002"
          }'""",
        "list",
    ),
    "rcouyi, models": ("""curl $BASE/v1/models -H "Authorization: Bearer $KEY" """, "list"),
    "rcouyi, chat": (
        """curl $BASE/v1/chat/completions \
           -H "Content-Type: application/json" \
           -H "Authorization: Bearer $KEY" \
           -d '{
            "model": "gpt-3.5-turbo",
            "messages": [{"role": "user", "content": "Say this is a test!"}],
            "temperature": 0.7
           }'""",
        "chat.completion",
    ),
    "rcouyi, another vendor's model": (
        """curl $BASE/v1/chat/completions \
            -H "Content-Type: application/json" \
            -H "Authorization: Bearer $KEY" \
            -d '{
                "model": "claude-2.1",
                "messages": [{"role": "user", "content": "Say this is a test!"}],
                "temperature": 0.7
              }'""",
        "chat.completion",
    ),
}


def shell(access: Access, command: str, body: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"BASE": access.base_url, "KEY": access.key, "PATH": os.environ["PATH"]}
    return subprocess.run(
        ["/bin/sh", "-c", command],
        env=environment,
        input=body,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_documented_command_works_when_pasted(access: Access, name: str):
    command, kind = DOCUMENTED[name]
    ran = shell(access, command.replace("curl ", "curl -sS --fail-with-body ", 1))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(ran.stdout)["object"] == kind


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
def test_a_stream_ends_with_done(access: Access, version: str):
    ran = shell(
        access,
        f"""curl -sSN {version} $BASE/v1/chat/completions -H "Authorization: Bearer $KEY" \
        -H "Content-Type: application/json" \
        -d '{{"model": "gpt-4o-mini", "stream": true, "messages": [{{"role": "user", "content": "hi"}}]}}'""",
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.rstrip("\n").endswith("data: [DONE]")
    events = [line for line in ran.stdout.splitlines() if line.startswith("data: {")]
    assert len(events) > 2
    assert all(json.loads(line[6:])["object"] == "chat.completion.chunk" for line in events)


def test_a_large_body_with_expect_100_continue_is_taken(access: Access):
    text = "word " * 40_000  # past curl's threshold for Expect: 100-continue
    body = json.dumps(
        {"model": "gpt-4o-mini", "max_tokens": 5, "messages": [{"role": "user", "content": text}]}
    )
    ran = shell(
        access,
        """curl -sS --fail-with-body $BASE/v1/chat/completions -H "Authorization: Bearer $KEY" \
        -H "Content-Type: application/json" -H "Expect: 100-continue" -d@-""",
        body,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(ran.stdout)["usage"]["completion_tokens"] <= 5
