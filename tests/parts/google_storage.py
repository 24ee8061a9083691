"""Cloud Storage in memory: the JSON API as gcloud uses it, and of the XML API what `object_store` uses."""

import json
import re
import urllib.parse
from xml.sax.saxutils import escape

from answers import Answer, checksums, fault, unknown
from google_apis import OWNER_OF_BUCKET

TIME = "2026-01-01T00:00:00.000Z"


class Storage:
    def __init__(self, google):
        self.google = google
        self.buckets = {}
        self.objects = {}
        self.uploads = {}
        self.generation = 1_000

    def state(self):
        buckets = {
            name: {k: v for k, v in bucket.items() if k not in ("metageneration", "generation", "etag", "updated")}
            for name, bucket in self.buckets.items()
        }
        objects = {f"gs://{bucket}/{name}": one["md5Hash"] for (bucket, name), (one, _) in self.objects.items()}
        return {"buckets": buckets, "objects": objects}

    def answer(self, request):
        path = request.path
        if match := re.fullmatch(r"/storage/v1/b(?:/([^/]+))?", path):
            return self.bucket(request, match[1])
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/iam(/testPermissions)?", path):
            return self.policy(request, match[1])
        if match := re.fullmatch(
            r"/storage/v1/b/([^/]+)/(managedFolders|folders|notificationConfigs|acl|storageLayout)", path
        ):
            if request.method != "GET":
                return unknown(request)
            return Answer.of({"bucket": match[1], "items": []}) if match[1] in self.buckets else fault(404, "no bucket")
        if match := re.fullmatch(r"(?:/resumable)?/upload/storage/v1/b/([^/]+)/o", path):
            return self.upload(request, match[1])
        if match := re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?", request.raw_path):
            return self.object(request, match[1], urllib.parse.unquote(match[2] or ""))
        if match := re.fullmatch(r"/([a-z0-9][a-z0-9._-]+)(?:/(.*))?", path):
            return self.xml(request, match[1], match[2] or "")
        return unknown(request)

    def bucket(self, request, name):
        if name is None and request.method == "GET":
            return Answer.of({"items": list(self.buckets.values())})
        if name is None:
            if request.query.get("project") != self.google.project:
                return fault(400, "no such project")
            body = request.json()
            if body["name"] in self.buckets:
                return fault(409, "Your previous request to create the named bucket succeeded and you already own it.")
            defaults = {
                "kind": "storage#bucket",
                "id": body["name"],
                "storageClass": "STANDARD",
                "location": "US",
                "timeCreated": TIME,
                "updated": TIME,
            }
            body = defaults | body | {"metageneration": "1", "projectNumber": self.google.number}
            body["location"] = body["location"].upper()
            self.buckets[body["name"]] = body
            return Answer.of(body)
        if name not in self.buckets:
            return fault(404, "The specified bucket does not exist.")
        bucket = self.buckets[name]
        if request.method == "PATCH":
            for key, value in request.json().items():
                if value is None:
                    bucket.pop(key, None)
                elif isinstance(value, dict) and isinstance(bucket.get(key), dict) and key != "lifecycle":
                    bucket[key] |= value
                else:
                    bucket[key] = value
            bucket["metageneration"] = str(int(bucket["metageneration"]) + 1)
        elif request.method == "DELETE":
            if any(of == name for of, _ in self.objects):
                return fault(409, "The bucket you tried to delete is not empty.")
            del self.buckets[name]
            self.google.policies.pop(f"storage.googleapis.com/{name}", None)
            return Answer(204)
        elif request.method != "GET":
            return unknown(request)
        return Answer.of(bucket)

    def policy(self, request, bucket):
        if bucket not in self.buckets:
            return fault(404, "The specified bucket does not exist.")
        owner = f"projectOwner:{self.google.project}"
        first = [{"role": OWNER_OF_BUCKET, "members": [owner]}]
        policy = request.json() if request.method == "PUT" else None
        return self.google.policy(f"storage.googleapis.com/{bucket}", policy, first)

    def upload(self, request, bucket):
        if bucket not in self.buckets:
            return fault(404, "The specified bucket does not exist.")
        kind = request.query.get("uploadType")
        if kind == "multipart":
            boundary = re.search(r"boundary=['\"]?([^'\";]+)", request.headers["Content-Type"])[1].encode()
            parts = [
                part.split(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n", 1)[1]
                for part in request.body.split(b"--" + boundary)[1:-1]
            ]
            about, data = json.loads(parts[0]), parts[1].removesuffix(b"\n").removesuffix(b"\r")
            return self.store(request, bucket, about.get("name") or request.query["name"], data, about)
        if kind == "media":
            return self.store(request, bucket, request.query["name"], request.body, {})
        if request.method == "POST":
            about = request.json()
            name = about.get("name") or request.query["name"]
            if refused := self.precondition(request, bucket, name):
                return refused
            upload = str(len(self.uploads) + 1)
            self.uploads[upload] = [bucket, name, about, b""]
            host = (
                "https://storage.googleapis.com"
                if request.host.endswith("googleapis.com")
                else f"http://{request.headers['Host']}"
            )
            target = f"{host}{request.target}&upload_id={upload}"
            return Answer(200, b"", {"Location": target, "X-GUploader-UploadID": upload})
        upload = self.uploads[request.query["upload_id"]]
        upload[3] += request.body
        total = request.headers.get("Content-Range", "bytes */0").rpartition("/")[2]
        if total == "*" or len(upload[3]) < int(total):
            return Answer(308, b"", {"Range": f"bytes=0-{len(upload[3]) - 1}"})
        return self.store(request, upload[0], upload[1], upload[3], upload[2])

    def precondition(self, request, bucket, name):
        wanted = request.query.get("ifGenerationMatch") or request.headers.get("x-goog-if-generation-match")
        found = self.objects.get((bucket, name))
        if wanted is not None and wanted != (found[0]["generation"] if found else "0"):
            return fault(412, "At least one of the pre-conditions you specified did not hold.")
        return None

    def store(self, request, bucket, name, data, about):
        if refused := self.precondition(request, bucket, name):
            return refused
        self.generation += 1
        one = {"kind": "storage#object", "id": f"{bucket}/{name}/{self.generation}", "name": name, "bucket": bucket}
        one |= {
            "generation": str(self.generation),
            "metageneration": "1",
            "storageClass": "STANDARD",
            "size": str(len(data)),
        }
        one |= {
            "contentType": about.get("contentType", "application/octet-stream"),
            "timeCreated": TIME,
            "updated": TIME,
        }
        one |= {"metadata": about["metadata"]} if "metadata" in about else {}
        one["mediaLink"] = (
            f"https://storage.googleapis.com/download/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media"
        )
        one |= checksums(data) | {"etag": str(self.generation)}
        self.objects[bucket, name] = one, data
        return Answer.of(one)

    def object(self, request, bucket, name):
        if bucket not in self.buckets:
            return fault(404, "The specified bucket does not exist.")
        if not name:
            return self.listed(request, bucket)
        if copy := re.fullmatch(r"(.+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)", name):
            found = self.objects.get((bucket, copy[1]))
            if found is None:
                return fault(404, "No such object")
            answer = self.store(request, copy[2], copy[3], found[1], found[0])
            return (
                Answer.of({"kind": "storage#rewriteResponse", "done": True, "resource": answer.json()})
                if answer.status == 200
                else answer
            )
        found = self.objects.get((bucket, name))
        if found is None:
            return fault(404, f"No such object: {bucket}/{name}")
        one, data = found
        if request.method == "DELETE":
            del self.objects[bucket, name]
            return Answer(204)
        if request.method == "PATCH":
            one |= request.json()
        elif request.method != "GET":
            return unknown(request)
        if request.query.get("alt") == "media":
            return self.content(request, one, data)
        return Answer.of(one)

    def content(self, request, one, data):
        headers = {
            "Content-Type": one["contentType"],
            "ETag": f'"{one["etag"]}"',
            "x-goog-generation": one["generation"],
        }
        headers |= {"x-goog-hash": f"crc32c={one['crc32c']}", "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        headers |= {"x-goog-stored-content-length": one["size"], "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if span is None:
            return Answer(200, data, headers)
        first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return Answer(206, data[first : last + 1], headers)

    def names(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        found, prefixes = [], set()
        for of, name in sorted(self.objects):
            if of != bucket or not name.startswith(prefix):
                continue
            end = name.find(delimiter, len(prefix)) if delimiter else -1
            prefixes.add(name[: end + 1]) if end >= 0 else found.append(self.objects[of, name][0])
        return found, sorted(prefixes)

    def listed(self, request, bucket):
        found, prefixes = self.names(bucket, request.query)
        return Answer.of({"kind": "storage#objects", "items": found, "prefixes": prefixes})

    def xml(self, request, bucket, name):
        if bucket not in self.buckets:
            return Answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        if not name and request.method == "GET":
            found, prefixes = self.names(bucket, request.query)
            contents = "".join(
                f"<Contents><Key>{escape(one['name'])}</Key><Size>{one['size']}</Size><ETag>\"{one['etag']}\"</ETag><LastModified>{TIME}</LastModified></Contents>"
                for one in found
            )
            common = "".join(
                f"<CommonPrefixes><Prefix>{escape(prefix)}</Prefix></CommonPrefixes>" for prefix in prefixes
            )
            return Answer(
                200,
                f"<ListBucketResult>{contents}{common}</ListBucketResult>".encode(),
                {"Content-Type": "application/xml"},
            )
        if request.method == "PUT":
            answer = self.store(
                request,
                bucket,
                name,
                request.body,
                {"contentType": request.headers.get("Content-Type", "application/octet-stream")},
            )
            if answer.status != 200:
                return Answer(answer.status, b"<Error><Code>PreconditionFailed</Code></Error>")
            one = answer.json()
            return Answer(200, b"", {"ETag": f'"{one["etag"]}"', "x-goog-generation": one["generation"]})
        if (bucket, name) not in self.objects:
            return Answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        one, data = self.objects[bucket, name]
        if request.method in ("GET", "HEAD"):
            answer = self.content(request, one, data)
            if request.method == "HEAD":
                answer.headers["Content-Length"] = one["size"]
            return answer
        if request.method == "DELETE":
            del self.objects[bucket, name]
            return Answer(204)
        return unknown(request)
