"""The fixed parts of the benchmark: C programs, certificate, upstream, the canned requests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import orjson

from proxy.bench.machine import BenchError, Cores, Process, free_port

SOURCES = Path(__file__).parent
START_S = 10.0
PLAIN_MODEL, SECURE_MODEL = "gpt-4o-mini", "gpt-4o"  # the relay's upstream follows from the model
PROMPT = (
    "You are given the notes of a meeting about a relay that carries the traffic of a few hundred "
    "people. Sum them up in three sentences and name the one decision that was not taken. Notes: the "
    "first part was about timeouts; a stream that says nothing for five minutes is cut, and nobody "
    "was sure that this is right for models that think before they speak. The second part was about "
    "bills: two people had compared theirs with the figures of the vendor and found the same sums. "
    "The third part was a list: move the second region to the new line, tell people about the change "
    "of prices a week before, look at why the status page was green while one mirror was down, write "
    "the steps for a lost disk, and ask whether the free quota should follow the calendar or the day "
    "on which somebody joined. Nobody wanted to be the one who writes the steps. "
)
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\n"
    "Host: 127.0.0.1\r\n"
    "Accept: application/json\r\n"
    "Content-Type: application/json\r\n"
    "User-Agent: OpenAI/Python 2.6.1\r\n"
    "X-Stainless-Lang: python\r\n"
    "X-Stainless-Package-Version: 2.6.1\r\n"
    "X-Stainless-OS: Linux\r\n"
    "X-Stainless-Arch: x64\r\n"
    "X-Stainless-Runtime: CPython\r\n"
    "X-Stainless-Runtime-Version: 3.11.7\r\n"
    "X-Stainless-Async: false\r\n"
    "x-stainless-retry-count: 0\r\n"
    "Authorization: Bearer {key}\r\n"
    "Content-Length: {length}\r\n"
    "\r\n"
)


class Rig:
    """Everything around the proxies, in one scratch folder."""

    def __init__(self, folder: Path, cores: Cores) -> None:
        self.folder, self.cores = folder, cores
        self.keys = ["sk-bench-without-a-relay"]
        self.upstream_port, self.secure_port = free_port(), free_port()
        self.certificate: Path | None = None
        self._upstream: Process | None = None

    def build(self) -> None:
        """Compile the two C programs. Raises BenchError where there is no compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            raise BenchError(
                "there is no C compiler (cc) on this machine. The upstream and the load client are C "
                "programs, because both must be far faster than any proxy: nothing can be measured."
            )
        for name in ("upstream", "load"):
            command = [compiler, "-O2", "-o", str(self.folder / name), str(SOURCES / f"{name}.c"), "-ldl"]
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            if built.returncode:
                raise BenchError(f"{' '.join(command)} failed:\n{built.stderr[-2000:]}")

    def start(self) -> None:
        """Start the upstream; with HTTPS where `openssl` can make a certificate."""
        program = str(self.folder / "upstream")
        command = [program, str(self.upstream_port)]
        self.certificate = make_certificate(self.folder)
        if self.certificate:
            key = self.folder / "server.key"
            command += [str(self.secure_port), str(self.folder / "server.pem"), str(key)]
        log = self.folder / "upstream.log"
        self._upstream = Process(command, self.cores.rest, log, is_first=True)
        self._upstream.wait_for_port(self.upstream_port, START_S)

    def stop(self) -> None:
        if self._upstream:
            self._upstream.stop()

    def upstream_url(self, is_secure: bool) -> str:
        if is_secure:
            return f"https://127.0.0.1:{self.secure_port}"
        return f"http://127.0.0.1:{self.upstream_port}"

    def requests(
        self, name: str, is_secure: bool, *, stream: str = "", asks_usage: bool = True
    ) -> list[Path]:
        """Files with one raw request per key. `stream`: what upstream.c reads, "" for a whole answer."""
        body: dict[str, object] = {
            "model": SECURE_MODEL if is_secure else PLAIN_MODEL,
            "messages": [
                {"role": "system", "content": "You are a careful assistant who answers briefly."},
                {"role": "user", "content": PROMPT + stream},
            ],
            "temperature": 0.7,
            "max_tokens": 512,
            "user": "bench",
        }
        if stream:
            body["stream"] = True
            if asks_usage:
                body["stream_options"] = {"include_usage": True}
        raw = orjson.dumps(body)
        files = []
        for index, key in enumerate(self.keys):
            file = self.folder / f"{name}{'-tls' if is_secure else ''}-{index}.request"
            file.write_bytes(HEAD.format(key=key, length=len(raw)).encode() + raw)
            files.append(file)
        return files


def make_certificate(folder: Path) -> Path | None:
    """A throw-away CA (returned) and a certificate for 127.0.0.1; None where there is no openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    authority = folder / "ca.pem"
    (folder / "server.ext").write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n"
        "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    new = ["-newkey", "rsa:2048", "-nodes", "-subj"]
    ca = ["-days", "2", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]  # RFC 5280; Python 3.13 insists
    signed_by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
    for arguments in (
        ["req", "-x509", *new, "/CN=headrace bench CA", *ca, "-keyout", "ca.key", "-out", "ca.pem"],
        ["req", *new, "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"],
        ["x509", "-req", "-in", "server.csr", *signed_by, "-extfile", "server.ext", "-out", "server.pem"],
    ):
        made = subprocess.run([openssl, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        if made.returncode:
            raise BenchError(f"openssl {' '.join(arguments)} failed:\n{made.stderr[-2000:]}")
    return authority
