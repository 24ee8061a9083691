"""Google's and Amazon's APIs on one machine, for the unmodified gcloud, bq and aws: all that is asked is recorded.

    python tests/parts/cloud_apis.py --port 5700 --folder F --project P --pubsub URL --bigquery URL --aws URL

One port of 127.0.0.1 is all of these:

- an HTTP proxy (CONNECT) for Google's APIs that ends TLS with a certificate of its own authority, `F/ca.pem`. A login
  for gcloud is `F/key.json`. Pub/Sub goes to the emulator, BigQuery to bqemulator, the rest is answered by `google_apis.py`
  and `google_storage.py`, which keep what was made;
- the address for `AWS_ENDPOINT_URL`: signed requests go to moto;
- the address for `BIGQUERY_REST_ENDPOINT` and `STORAGE_ENDPOINT`;
- under `/_/` what a test asks: `GET record?from=N`, `GET state`, `POST cut`, `POST refuse`, `POST not_starting`.

A call of Google's APIs that nobody knows is refused and stands in the record with `"unknown": true`.
"""

import argparse
import datetime
import ipaddress
import json
import pathlib
import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

import amazon_apis
import google_apis
import google_storage
from answers import Answer, Request, fault

READING_VERBS = ("checkValidCreds", "getIamPolicy", "testIamPermissions", "queryTestablePermissions", "search", "lookup", "query")


class Clouds:
    """All APIs, what was asked of them, and whether they may be reached."""

    def __init__(self, options):
        self.options = options
        self.lock = threading.RLock()
        self.record = []
        self.changes_left = None
        self.refused = None
        self.google = google_apis.GoogleApis(options)
        self.storage = google_storage.Storage(self.google)
        self.amazon = amazon_apis.AmazonApis(options.aws)

    def answer(self, request):
        if request.path.startswith("/_/"):
            return self.control(request)
        with self.lock:
            entry = {"method": request.method, "host": request.host, "path": request.path, "query": request.query}
            entry |= {"body": request.recorded_body(self.options.folder), "changes": self.changes(request)}
            if request.is_amazon:
                entry |= self.amazon.named(request)
            if self.changes_left is not None and (entry["changes"] and self.changes_left == 0 or self.changes_left < 0):
                self.changes_left = -1
                answer = fault(403, "cut off by the test")
                entry["cut"] = True
            elif self.refused and request.path.endswith(self.refused):
                answer = fault(403, "refused by the test")
            else:
                answer = self.of_cloud(request)
                if entry["changes"] and self.changes_left is not None and answer.status < 400:
                    self.changes_left -= 1
            entry["status"] = answer.status
            if "/upload/storage/" in request.path and answer.status == 200 and answer.body:
                # How the bytes were sent is of no account, the object is.
                one = answer.json()
                entry |= {"method": "POST", "path": f"/upload/storage/v1/b/{one['bucket']}/o", "query": {}}
                entry["body"] = {key: one[key] for key in ("name", "md5Hash")}
            if answer.unknown:
                entry["unknown"] = True
            self.record.append(entry)
            with open(f"{self.options.folder}/record.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            return answer

    def of_cloud(self, request):
        if request.is_amazon:
            return self.amazon.answer(request)
        if request.path.startswith(("/bigquery/", "/upload/bigquery/")):
            return self.google.bigquery(request)
        if request.host == "storage.googleapis.com" or not request.host.endswith((".googleapis.com", ".google.com")):
            return self.storage.answer(request)
        return self.google.answer(request)

    def changes(self, request):
        if request.is_amazon:
            return self.amazon.changes(request)
        if request.method in ("GET", "HEAD", "OPTIONS") or request.path == "/token":
            return False
        if re.search(r"/projects/[^/]+/(queries|jobs)$", request.path):
            return not google_apis.only_reads(request)
        if request.method == "POST" and request.query.get("uploadType") == "resumable":
            return False  # the bytes come with a PUT
        verb = request.path.rpartition(":")[2]
        return not (request.method == "POST" and verb in READING_VERBS)

    def control(self, request):
        name = request.path.removeprefix("/_/")
        with self.lock:
            if name == "record":
                return Answer.of(self.record[int(request.query.get("from", "0")) :])
            if name == "cut":
                # {"after": N}: N changes more, and then nothing is answered any more; {"after": null}: all is well again.
                self.changes_left = json.loads(request.body)["after"]
                return Answer.of({})
            if name == "refuse":
                # {"path_end": "…"}: such calls are refused; {"path_end": null}: no more.
                self.refused = json.loads(request.body)["path_end"]
                return Answer.of({})
            if name == "not_starting":
                # {"service": "…"}: its next revisions do not start; {"service": null}: all do.
                self.google.not_starting = json.loads(request.body)["service"]
                return Answer.of({})
            if name == "state":
                return Answer.of(self.google.state() | self.storage.state() | self.amazon.state())
        return fault(404, f"no such control: {name}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tunnel_host = None

    def do_CONNECT(self):
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.tunnel_host = self.path.partition(":")[0]
        try:
            self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        except OSError:
            self.close_connection = True
            return
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def serve(self):
        host = self.tunnel_host or self.headers.get("Host", "").partition(":")[0]
        request = Request(self.command, host, self.path, self.headers, self.read_body())
        try:
            answer = self.server.clouds.answer(request)
        except Exception as error:  # a fault of this program: the client is to hear of it, not to wait
            answer = fault(501, f"{type(error).__name__}: {error} at {self.command} {host}{self.path}")
            answer.unknown = True
            self.server.clouds.record.append(
                {"method": self.command, "host": host, "path": self.path, "unknown": True, "fault": str(error)}
            )
        self.send_response(answer.status)
        length = str(len(answer.body))
        for name, value in ({"Content-Type": "application/json", "Content-Length": length} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = serve

    def read_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_):
        pass


def certificates(folder):
    """An authority, a certificate of Google's names by it, and a service account's key."""
    now = datetime.datetime.now(datetime.timezone.utc)

    def certificate(name, issuer, key, issuer_key, extensions):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
        builder = builder.issuer_name(issuer or subject).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=30))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(issuer_key, hashes.SHA256())

    def pem(key):
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = certificate("tests", None, ca_key, ca_key, [x509.BasicConstraints(ca=True, path_length=0)])
    names = ["*.googleapis.com", "*.google.com", "*.run.app", "localhost"]
    alternatives = [x509.DNSName(name) for name in names] + [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    of_server = certificate("apis", ca.subject, key, ca_key, [x509.SubjectAlternativeName(alternatives)])
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "server.pem").write_bytes(pem(key) + of_server.public_bytes(serialization.Encoding.PEM))
    return pem(rsa.generate_private_key(65537, 2048)).decode()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where ca.pem, key.json, record.jsonl go")
    parser.add_argument("--project", required=True)
    parser.add_argument("--number", default="123456789012", help="the project's number")
    parser.add_argument("--billing-account", default="01AB23-CD45EF-67890A", help="the project's billing account")
    parser.add_argument("--pubsub", required=True, help="address of the Pub/Sub emulator")
    parser.add_argument("--bigquery", required=True, help="address of bqemulator")
    parser.add_argument("--aws", required=True, help="address of moto")
    parser.add_argument(
        "--run-url", action="append", default=[], help="enricher=http://127.0.0.1:8082: a service's address"
    )
    options = parser.parse_args()
    options.run_url = dict(pair.split("=", 1) for pair in options.run_url)
    options.folder.mkdir(parents=True, exist_ok=True)

    private_key = certificates(options.folder)
    key = {"type": "service_account", "project_id": options.project, "private_key_id": "1", "private_key": private_key}
    key |= {"client_email": f"deployer@{options.project}.iam.gserviceaccount.com", "client_id": "1"}
    key |= {"token_uri": "https://oauth2.googleapis.com/token"}
    (options.folder / "key.json").write_text(json.dumps(key), encoding="utf-8")

    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.daemon_threads = True
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(options.folder / "server.pem")
    server.clouds = Clouds(options)
    server.serve_forever()


if __name__ == "__main__":
    main()
