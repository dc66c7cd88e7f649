"""The holders' pages: a few files that work on the portal's JSON API, and nothing from anywhere else.

Owns their paths below /portal and what a browser may do with them. What they show is told by the API; the
files themselves are the same for everybody.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
ENTRY = "portal.html"
MARK = "{version}"  # in the entry: changes when any file does, so that the others may be kept for ever

FIELDS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",  # gateways send their customers back with what they paid in the URL
}


def add_routes(app: web.Application) -> None:
    """Reads the files once."""
    files = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    version = sha256(b"".join(files.values())).hexdigest()[:12]
    entry = files.pop(ENTRY).replace(MARK.encode(), version.encode())

    async def show_entry(request: web.Request) -> web.Response:
        """Also where payment gateways send people back to, with a query of theirs."""
        return _file(entry, ".html", "no-cache")

    async def show_file(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in files:
            raise web.HTTPNotFound
        is_newest = request.query.get("v") == version
        return _file(files[name], Path(name).suffix, f"max-age={31_536_000 if is_newest else 60}")

    async def lead(request: web.Request) -> web.Response:
        """Without its slash the page's own paths would be others."""
        query = f"?{request.query_string}" if request.query_string else ""
        return web.Response(status=308, headers={"location": f"/portal/{query}"})

    app.router.add_get("/portal", lead)
    app.router.add_get("/portal/", show_entry)
    app.router.add_get("/portal/{name:[a-z]+\\.[a-z]+}", show_file)


def _file(content: bytes, suffix: str, cache: str) -> web.Response:
    return web.Response(
        body=content, content_type=TYPES[suffix], charset="utf-8", headers={**FIELDS, "cache-control": cache}
    )
