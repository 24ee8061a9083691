"""Requests and answers of the APIs in `cloud_apis.py`."""

import base64
import hashlib
import http.client
import json
import urllib.parse
from xml.parsers.expat import ExpatError

import google_crc32c
import xmltodict

LARGE = 64 << 10  # characters


class Request:
    """What a client asks."""

    def __init__(self, method, host, target, headers, body):
        self.method, self.host, self.headers, self.body = method, host, headers, body
        self.target = target if target.startswith("/") else "/" + target.split("/", 3)[3]
        path, _, query = self.target.partition("?")
        self.raw_path, self.path = path, urllib.parse.unquote(path)
        self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self.is_amazon = headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256")

    def json(self):
        return json.loads(self.body) if self.body else {}

    def recorded_body(self, folder):
        """JSON as it is, XML and a form as an object, text as text; large or binary bytes, and a
        Lambda's code, as a file `<folder>/<sha256>`."""
        try:
            text = self.body.decode()
        except UnicodeDecodeError:
            return kept(self.body, folder)
        if len(text) > LARGE and not text.startswith("{"):
            return kept(self.body, folder)
        if "urlencoded" in self.headers.get("Content-Type", ""):
            form = dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
            return {name: value for name, value in form.items() if name not in ("Action", "Version")}
        try:
            if text.startswith("<") and not text.lower().startswith("<!doctype html"):
                return xmltodict.parse(text)
            body = json.loads(text) if text else None
        except (ValueError, ExpatError):
            return text
        if isinstance(body, dict) and "Code" in body:
            body["Code"] = {"ZipFile": kept(base64.b64decode(body["Code"]["ZipFile"]), folder)}
        return body

    def forward(self, url):
        """The answer of another server at the same path."""
        server = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(server.hostname, server.port, timeout=60)
        hop = ("host", "connection", "content-length", "transfer-encoding", "accept-encoding", "expect", "te")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
        if self.is_amazon:
            headers["Host"] = self.headers["Host"]
        connection.request(self.method, self.target, self.body or None, headers)
        response = connection.getresponse()
        body = response.read()
        kept = {
            n: v
            for n, v in response.getheaders()
            if n.lower() not in ("connection", "transfer-encoding", "date", "server", "content-length")
        }
        if self.method == "HEAD" and response.getheader("Content-Length"):
            kept["Content-Length"] = response.getheader("Content-Length")
        connection.close()
        return Answer(response.status, body, kept)


def kept(data, folder):
    """Says which file holds the bytes."""
    name = hashlib.sha256(data).hexdigest()
    (folder / name).write_bytes(data)
    return {"sha256": name}


class Answer:
    """What it is told."""

    def __init__(self, status, body=b"", headers=None):
        self.status, self.body, self.headers, self.unknown = status, body, headers or {}, False

    @classmethod
    def of(cls, value, status=200):
        return cls(status, json.dumps(value).encode())

    def json(self):
        return json.loads(self.body or b"{}")


def fault(status, message, details=None):
    """An error in Google's form."""
    words = {
        400: "INVALID_ARGUMENT",
        403: "PERMISSION_DENIED",
        404: "NOT_FOUND",
        409: "ALREADY_EXISTS",
        412: "FAILED_PRECONDITION",
        501: "UNIMPLEMENTED",
    }
    reason = {403: "forbidden", 404: "notFound", 409: "conflict", 412: "conditionNotMet"}.get(status, "invalid")
    error = {"code": status, "message": message, "status": words.get(status, "UNKNOWN")}
    error["errors"] = [{"message": message, "reason": reason, "domain": "global"}]
    if details:
        error["details"] = details
    return Answer.of({"error": error}, status)


def unknown(request):
    """A call that is not answered here; a test that meets it fails."""
    answer = fault(400, f"not known to the test: {request.method} {request.host}{request.target}")
    answer.unknown = True
    return answer


def checksums(data):
    """As Cloud Storage gives them."""
    crc32c = google_crc32c.value(data).to_bytes(4, "big")
    return {
        "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
        "crc32c": base64.b64encode(crc32c).decode(),
    }
