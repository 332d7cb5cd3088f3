"""Starts the web servers and load balancers of etc/proxies on loopback, each with its file as it is documented.

Only ports and paths are put in place of those in the file, and what Debian's own main configuration would say is
written around it. A port or path that the file no longer has is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.certificate import Certificate
from tests.support.ports import free_ports, is_listening
from tests.support.process import Process
from tests.support.servers import ROOT
from tests.support.tools import require, require_file

CONFIGURATIONS = ROOT / "etc" / "proxies"
START_PATIENCE = 30.0  # seconds; they take less than one

_AS_ROOT = os.geteuid() == 0
_APACHE_MODULES = Path("/usr/lib/apache2/modules")


@dataclass(frozen=True)
class Upstream:
    """Where relayd listens, on 127.0.0.1: for plain HTTP, and for TLS behind a PROXY header."""

    plain: int
    passthrough: int
    certificate: Certificate


@dataclass(frozen=True)
class ReverseProxy:
    """One that runs, on that port of 127.0.0.1 and ::1."""

    process: Process
    port: int


def start_nginx(directory: Path, upstream: Upstream, changes: Mapping[str, str] | None = None) -> ReverseProxy:
    """TLS ends at nginx. `changes` are more replacements."""
    port = free_ports()
    here = {
        "/etc/relayd/fullchain.pem": str(upstream.certificate.certificate),
        "/etc/relayd/key.pem": str(upstream.certificate.key),
        "127.0.0.1:8080": f"127.0.0.1:{upstream.plain}",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "listen [::]:443 ssl;": f"listen [::1]:{port} ssl;",
    }
    site = _adapted(directory, "nginx.conf", {**here, **(changes or {})})
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind}; " for kind in kinds)
    return _run_nginx(directory, port, f"http {{ access_log off; {temporary}include {site}; }}")


def start_nginx_passthrough(directory: Path, upstream: Upstream) -> ReverseProxy:
    """TLS goes through nginx."""
    stream = require_file("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream")
    port = free_ports()
    here = {
        "127.0.0.1:8443": f"127.0.0.1:{upstream.passthrough}",
        "listen 443;": f"listen 127.0.0.1:{port};",
        "listen [::]:443;": f"listen [::1]:{port};",
    }
    site = _adapted(directory, "nginx-passthrough.conf", here)
    return _run_nginx(directory, port, f"include {site};", f"load_module {stream};")


def _run_nginx(directory: Path, port: int, context: str, module: str = "") -> ReverseProxy:
    """With `context` at the end of its main configuration."""
    program = require("nginx")
    lines = [module, "daemon off;", "worker_processes 1;", f"pid {directory}/nginx.pid;", "error_log stderr notice;"]
    main = directory / "main.conf"
    main.write_text("\n".join([*lines, "events { worker_connections 256; }", context, ""]))
    return _started([program, "-c", str(main), "-p", str(directory), "-e", "stderr"], directory, port)


def start_haproxy(directory: Path, upstream: Upstream) -> ReverseProxy:
    """TLS ends at HAProxy."""
    pem = _pem(directory, upstream.certificate)
    files = {"/etc/haproxy/relay.example.org.pem": str(pem), "127.0.0.1:8080": f"127.0.0.1:{upstream.plain}"}
    return _start_haproxy(directory, "haproxy.cfg", files)


def start_haproxy_one_port(directory: Path, certificate: Certificate, upstream: int) -> ReverseProxy:
    """TLS ends at HAProxy, whatever is spoken within; relayd takes it at that port, behind a PROXY header."""
    pem = _pem(directory, certificate)
    files = {"/etc/haproxy/relay.example.org.pem": str(pem), "127.0.0.1:8478": f"127.0.0.1:{upstream}"}
    return _start_haproxy(directory, "haproxy-one-port.cfg", files)


def _pem(directory: Path, certificate: Certificate) -> Path:
    """The certificate and its key in one file, as HAProxy takes them."""
    pem = directory / "haproxy.pem"
    pem.touch(mode=0o600)
    pem.write_bytes(certificate.certificate.read_bytes() + certificate.key.read_bytes())
    return pem


def start_haproxy_passthrough(directory: Path, upstream: Upstream) -> ReverseProxy:
    """TLS goes through HAProxy."""
    files = {"127.0.0.1:8443": f"127.0.0.1:{upstream.passthrough}"}
    return _start_haproxy(directory, "haproxy-passthrough.cfg", files)


def _start_haproxy(directory: Path, name: str, changes: Mapping[str, str]) -> ReverseProxy:
    port = free_ports()
    listen = {"bind :443": f"bind 127.0.0.1:{port}", "bind :::443 v6only": f"bind ::1:{port}"}
    configuration = _adapted(directory, name, {**changes, **listen})
    return _started([require("haproxy"), "-db", "-f", str(configuration)], directory, port)


def start_caddy(directory: Path, upstream: Upstream) -> ReverseProxy:
    """TLS ends at Caddy."""
    port = free_ports()
    changes = {
        "relay.example.org:443": f"https://localhost:{port}",
        "/etc/relayd/fullchain.pem": str(upstream.certificate.certificate),
        "/etc/relayd/key.pem": str(upstream.certificate.key),
        "127.0.0.1:8080": f"127.0.0.1:{upstream.plain}",
    }
    site = _adapted(directory, "Caddyfile", changes)
    main = directory / "Caddyfile.main"
    # Else it would listen on port 2019 for an administrator, and on port 80.
    main.write_text(f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}}\nimport {site}\n")
    home = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    command = [require("caddy"), "run", "--config", str(main), "--adapter", "caddyfile"]
    return _started(command, directory, port, home)


def start_apache(directory: Path, upstream: Upstream) -> ReverseProxy:
    """TLS ends at Apache."""
    port = free_ports()
    changes = {
        "*:443": f"*:{port}",
        "/etc/relayd/fullchain.pem": str(upstream.certificate.certificate),
        "/etc/relayd/key.pem": str(upstream.certificate.key),
        "127.0.0.1:8080": f"127.0.0.1:{upstream.plain}",
    }
    site = _adapted(directory, "apache.conf", changes)
    modules = ("mpm_event", "authz_core", "ssl", "headers", "proxy", "proxy_http")
    lines = [f"LoadModule {name}_module {_APACHE_MODULES}/mod_{name}.so" for name in modules]
    lines += [f"ServerRoot {directory}", f"DefaultRuntimeDir {directory}", f"PidFile {directory}/apache.pid"]
    lines += [f"Listen 127.0.0.1:{port}", f"Listen [::1]:{port}", "ServerName localhost"]
    lines += ["ErrorLog /dev/stderr", "LogLevel info"]
    lines += ["User www-data", "Group www-data"] if _AS_ROOT else []
    main = directory / "apache-main.conf"
    main.write_text("\n".join([*lines, f"Include {site}", ""]))
    return _started([require("apache2"), "-D", "FOREGROUND", "-f", str(main)], directory, port)


ENDING_TLS: Mapping[str, Callable[[Path, Upstream], ReverseProxy]] = {
    "nginx": start_nginx,
    "haproxy": start_haproxy,
    "caddy": start_caddy,
    "apache": start_apache,
}
PASSING_TLS: Mapping[str, Callable[[Path, Upstream], ReverseProxy]] = {
    "nginx-passthrough": start_nginx_passthrough,
    "haproxy-passthrough": start_haproxy_passthrough,
}


def _adapted(directory: Path, name: str, changes: Mapping[str, str]) -> Path:
    """A copy of the file with those changes, each of which has to be one."""
    text = (CONFIGURATIONS / name).read_text(encoding="utf-8")
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"etc/proxies/{name} has no {old!r}")
        text = text.replace(old, new)
    copy = directory / name
    copy.write_text(text, encoding="utf-8")
    return copy


def _started(
    command: list[str], directory: Path, port: int, environment: Mapping[str, str] | None = None
) -> ReverseProxy:
    process = Process(command, directory, environment)
    if not process.wait_until(lambda: is_listening(port) and is_listening(port, "::1"), START_PATIENCE):
        process.kill()
        raise RuntimeError(f"{command[0]} did not start; it printed:\n{process.output}")
    return ReverseProxy(process, port)
