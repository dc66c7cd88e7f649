"""What is compared: the bare upstream, nginx, the textbook proxy. The relay has its own file.

A subject is started once, listens on one or two ports (to a plain and to an HTTPS upstream) and says
which process's CPU time and memory are its own.
"""

from __future__ import annotations

import shutil
import sys
from abc import ABC, abstractmethod

from proxy.bench.machine import BenchError, Process, free_port
from proxy.bench.rig import START_S, Rig

NGINX_CONF = """
daemon off;
master_process off;  # one process, as one worker would be
pid {folder}/nginx.pid;
error_log stderr warn;
worker_rlimit_nofile {files};
events {{ worker_connections {files}; }}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    keepalive_requests 100000000;
    upstream plain {{ server 127.0.0.1:{plain}; keepalive 256; keepalive_requests 100000000; }}
    upstream secure {{ server 127.0.0.1:{secure}; keepalive 256; keepalive_requests 100000000; }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    proxy_read_timeout 600s;
    server {{ listen 127.0.0.1:{listen_plain} backlog=16384; location / {{ proxy_pass http://plain; }} }}
    {secure_server}
}}
"""
NGINX_SECURE_SERVER = """
    server {{
        listen 127.0.0.1:{listen_secure} backlog=16384;
        proxy_ssl_verify on;
        proxy_ssl_trusted_certificate {authority};
        proxy_ssl_name localhost;
        location / {{ proxy_pass https://secure; }}
    }}
"""


class Subject(ABC):
    """One column of the report."""

    name: str

    @abstractmethod
    def start(self) -> None:
        """Raises BenchError with the reason why it cannot take part."""

    @abstractmethod
    def stop(self) -> None:
        """Stop what `start` started; harmless when it did not."""

    @abstractmethod
    def port(self, is_secure: bool) -> int:
        """Where requests go that shall reach the upstream in the clear, or by HTTPS."""

    def pid(self, is_secure: bool) -> int | None:
        """The process that moves the bytes; None: there is none."""
        return None

    def helpers(self) -> dict[str, list[int]]:
        """Processes that work for it beside the path of the bytes, by name, reported apart."""
        return {}


class Direct(Subject):
    """The bare upstream: what the time to first byte is compared with. In the clear only."""

    name = "direct"

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def start(self) -> None:
        """The rig has started it."""

    def stop(self) -> None:
        """The rig stops it."""

    def port(self, is_secure: bool) -> int:
        return self._rig.upstream_port


class Nginx(Subject):
    """Debian's nginx, our own instance: one process, keep-alive to the upstream, no log."""

    name = "nginx"

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._ports = {False: free_port(), True: free_port()}
        self._process: Process | None = None

    def start(self) -> None:
        program = shutil.which("nginx")
        if program is None:
            raise BenchError("nginx is not on PATH (Debian: apt-get install nginx-light)")
        folder = self._rig.folder
        secure_server = ""
        if self._rig.certificate:
            secure_server = NGINX_SECURE_SERVER.format(
                listen_secure=self._ports[True], authority=self._rig.certificate
            )
        config = folder / "nginx.conf"
        config.write_text(
            NGINX_CONF.format(
                folder=folder,
                files=32768,
                plain=self._rig.upstream_port,
                secure=self._rig.secure_port,
                listen_plain=self._ports[False],
                secure_server=secure_server,
            )
        )
        command = [program, "-p", str(folder), "-c", str(config)]
        self._process = Process(command, self._rig.cores.proxy, folder / "nginx.log")
        self._process.wait_for_port(self._ports[False], START_S)

    def stop(self) -> None:
        if self._process:
            self._process.stop()

    def port(self, is_secure: bool) -> int:
        return self._ports[is_secure]

    def pid(self, is_secure: bool) -> int | None:
        return self._process.pid if self._process else None


class Textbook(Subject):
    """proxy.bench.textbook, one process per upstream."""

    name = "textbook"

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._ports = {False: free_port(), True: free_port()}
        self._processes: dict[bool, Process] = {}

    def start(self) -> None:
        for is_secure in (False, True) if self._rig.certificate else (False,):
            url, port = self._rig.upstream_url(is_secure), self._ports[is_secure]
            self._processes[is_secure] = Process(
                [sys.executable, "-m", "proxy.bench.textbook", str(port), url],
                self._rig.cores.proxy,
                self._rig.folder / f"textbook-{port}.log",
                {"SSL_CERT_FILE": str(self._rig.certificate)} if is_secure else {},
            )
        for is_secure, process in self._processes.items():
            process.wait_for_port(self._ports[is_secure], START_S)

    def stop(self) -> None:
        for process in self._processes.values():
            process.stop()

    def port(self, is_secure: bool) -> int:
        return self._ports[is_secure]

    def pid(self, is_secure: bool) -> int | None:
        return self._processes[is_secure].pid
